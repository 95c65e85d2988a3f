"""The recipes of the race, one for each method, and how a schedule is scaled; both sides read the same one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig

MEAN, STD = ("0.485", "0.456", "0.406"), ("0.229", "0.224", "0.225")
"""of the published thin ResNets, ImageNet's on CIFAR"""

IMAGE_SIZE = 32

LEAST = {"epochs": 2, "warmup_epochs": 1, "student_steps": 1, "synthesis_steps": 2, "full_images": 1}
"""of each count that is scaled"""


@dataclass(frozen=True)
class RaceRecipe:
    """A published preset, what a core changes in it, and which of its counts go with the scale."""

    preset: str
    flags: tuple[str, ...]
    scaled: tuple[str, ...] = ()
    """beside epochs, warm-up epochs and student steps an epoch"""

    @property
    def counts(self) -> tuple[str, ...]:
        """All that are multiplied by the scale."""
        return ("epochs", "warmup_epochs", "student_steps", *self.scaled)


RESNET = ("--adv-weight", "1.33", "--ce-weight", "0.5")
"""Fast's published weights for a ResNet; the presets' are those for Wide ResNets"""
PERSISTS = ("--generator-life", "0")
"""a life of 10 epochs, in which a scaled schedule takes a few dozen steps, is too short to learn anything"""

RECIPES = {
    "nayer": RaceRecipe(
        "cifar10",
        ("--epochs", "220", "--synthesis-batch-size", "100", "--batch-size", "128", "--student-lr", "0.05", *PERSISTS),
        scaled=("synthesis_steps",),
    ),
    "ssdkd": RaceRecipe(
        "cifar10", ("--synthesis-batch-size", "64", "--batch-size", "64", "--student-lr", "0.05", *RESNET)
    ),
    "fast": RaceRecipe(
        "cifar10-fast5", ("--synthesis-batch-size", "64", "--batch-size", "64", "--student-lr", "0.05", *RESNET)
    ),
    "muse-s": RaceRecipe(
        "cifar10",
        ("--synthesis-batch-size", "65", "--batch-size", "65", *PERSISTS),
        scaled=("synthesis_steps", "full_images"),
    ),
    "cmi": RaceRecipe(
        "cifar10",
        (
            *("--synthesis-batch-size", "64", "--batch-size", "128", "--synthesis-steps", "40"),
            *("--bank-size", "2560", "--num-negatives", "256"),
        ),
    ),
}
"""batches, and SGD's rate with them, are a quarter of the published ones, since a core takes few steps; CMI's student
batch is the published one, its rounds a fifth as long and its bank and negatives a sixteenth
"""

COMMON = ("--text", "orthogonal", "--pool.quantize", "truncate", "--threads", "1")
"""no text encoder; pixels become bytes as the released codes cut them off"""


@dataclass(frozen=True)
class Networks:
    """Teacher, student, and the file of the teacher's weights."""

    teacher: str
    student: str
    weights: Path

    def flags(self) -> tuple[str, ...]:
        """For `dfkd-fast train`."""
        names = ("--teacher", self.teacher, "--student", self.student, "--teacher-weights", str(self.weights))
        return (*names, "--mean", *MEAN, "--std", *STD)


def flags_of(method: str, networks: Networks, *, scale: float, seed: int, more: tuple[str, ...] = ()) -> list[str]:
    """The recipe at a scale as flags behind `--preset`; `more` come last."""
    recipe = RECIPES[method]
    flags = [*networks.flags(), *COMMON, *recipe.flags]
    for name, count in scaled(method, published(method), scale).items():
        flags += [f"--{name.replace('_', '-')}", str(count)]
    return [*flags, "--seed", str(seed), *more]


def scaled(method: str, config: Any, scale: float) -> dict[str, int]:
    """The counts of a method's config at a scale."""
    return {name: max(LEAST[name], round(scale * getattr(config, name))) for name in RECIPES[method].counts}


def published(method: str) -> Any:
    """The method's config at scale 1."""
    return config_of(method, RECIPES[method].flags).method


def config_of(method: str, flags: Sequence[str]) -> TrainConfig[Any]:
    """Every setting behind a method's preset and flags."""
    return _read(method, RECIPES[method].preset, tuple(flags))


@cache
def _read(method: str, preset: str, flags: tuple[str, ...]) -> TrainConfig[Any]:
    """Reading flags takes a good part of a second."""
    return load_config(default_config(method), preset=preset, flags=flags)


def public(networks: Networks) -> Networks:
    """Without where the file lies on this machine."""
    return replace(networks, weights=Path("TEACHERS") / networks.weights.name)
