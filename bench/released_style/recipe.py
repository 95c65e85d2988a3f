"""Hyper-parameters of the baseline."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Networks, sizes and weights; `config` is the method's own, for what one method alone has."""

    teacher: str
    student: str
    num_classes: int
    image_size: int
    """of the images that are made"""
    full_size: int
    """that the networks are made for"""
    synthesis_batch_size: int
    batch_size: int
    synthesis_steps: int = 40
    embedding_dim: int = 512
    noise_features: int = 1000
    generator_width: int = 128
    latent_dim: int = 256
    generator_lr: float = 4e-3
    latent_lr: float = 1e-2
    student_lr: float = 0.2
    student_momentum: float = 0.9
    student_weight_decay: float = 1e-4
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
    config: Any = field(default=None, compare=False, repr=False)


def recipe_of(config: Any, *, num_classes: int, full_size: int, **stated: Any) -> Recipe:
    """The baseline's recipe for a TrainConfig; `stated`: the networks' `mean` and `std`, where they matter."""
    method = config.method
    renamed = {
        "image_size": getattr(method, "image_sizes", (full_size,))[0],
        "adamw": method.student_optimizer == "adamw",
        "temperature": method.kd_temperature,
        "bn_momentum": getattr(method, "bn_momentum", 0.0),
        "config": method,
    }
    if hasattr(method, "inner_radius"):
        renamed["radii"] = (method.inner_radius, method.outer_radius)
    named = {each.name for each in fields(Recipe) if hasattr(method, each.name)}
    return Recipe(
        teacher=config.teacher,
        student=config.student,
        num_classes=num_classes,
        full_size=full_size,
        **{name: getattr(method, name) for name in named - renamed.keys()},
        **renamed,
        **stated,
    )
