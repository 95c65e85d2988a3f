"""Hyper-parameters of the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Networks, sizes and weights of NAYER, and of MUSE-S where the last three weights are not 0."""

    teacher: str
    student: str
    num_classes: int
    image_size: int
    """of the images that are made"""
    full_size: int
    """that the networks are made for"""
    synthesis_batch_size: int
    batch_size: int
    embedding_dim: int = 512
    noise_features: int = 1000
    generator_lr: float = 4e-3
    student_lr: float = 0.2
    adamw: bool = False
    temperature: float = 20.0
    bn_momentum: float = 0.9
    crop_padding: int = 4
    ce_weight: float = 0.5
    bn_weight: float = 10.0
    adv_weight: float = 1.33
    cam_weight: float = 0.0
    aed_weight: float = 0.0
    ed_weight: float = 0.0
    radii: tuple[float, float] = (0.015, 0.03)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)


def recipe_of(config: Any, *, num_classes: int, full_size: int) -> Recipe:
    """The baseline's recipe for a TrainConfig of nayer or muse-s."""
    method = config.method
    names = ("noise_features", "generator_lr", "student_lr", "bn_momentum", "crop_padding")
    weights = [f"{term}_weight" for term in ("ce", "bn", "adv", "cam", "aed", "ed")]
    return Recipe(
        teacher=config.teacher,
        student=config.student,
        num_classes=num_classes,
        image_size=getattr(method, "image_sizes", (full_size,))[0],
        full_size=full_size,
        synthesis_batch_size=method.synthesis_batch_size,
        batch_size=method.batch_size,
        adamw=method.student_optimizer == "adamw",
        temperature=method.kd_temperature,
        **{name: getattr(method, name) for name in (*names, *weights) if hasattr(method, name)},
    )
