"""The sizes that are made larger, and how the cost of a step is expected to grow with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.models.factory import ModelInfo


@dataclass(frozen=True, kw_only=True)
class Point:
    """A recipe whose steps are timed."""

    axis: str
    value: int
    method: str = "nayer"
    teacher: str = "cnn"
    student: str = "cnn_s"
    batch_size: int = 64
    num_classes: int = 10
    image_size: int = 32
    ranks: int = 1
    """processes that share the batch"""
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells its line from others."""
        return self.axis, self.method, self.value

    def config(self) -> TrainConfig[Any]:
        """The method's recipe on the smallest epochs that have every kind of step."""
        flags = ("--teacher", self.teacher, "--student", self.student, "--epochs", "4", "--warmup-epochs", "1")
        flags += ("--synthesis-batch-size", str(self.batch_size), "--batch-size", str(self.batch_size))
        return load_config(default_config(self.method), flags=(*flags, *self.flags))

    def info(self) -> ModelInfo:
        """What its networks are made for."""
        sizes = {"num_classes": self.num_classes, "image_size": self.image_size}
        return ModelInfo(name="", **sizes, mean=(0.5,) * 3, std=(0.25,) * 3)


Work = Callable[[dict[str, Any]], float]
"""of a step, from its line: what its seconds are expected to be proportional to"""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Points that differ in one size."""

    label: str
    points: Sequence[Point]
    expected: str
    """in words"""
    anchor: int = 0
    """the point that the expected line begins at"""
    linear: bool = False
    """the line goes through the anchor and the point behind it, in `value`; else in proportion to the step's FLOPs, or
    as it is where a larger value is no more work
    """
    constant: bool = False
    most: float = 1.15
    """the last point's seconds to what the line says there: more is a term that grows faster than the work"""


def _along(axis: str, name: str, values: Sequence[int], **settings: Any) -> tuple[Point, ...]:
    start = Point(axis=axis, value=0, **settings)
    return tuple(replace(start, value=value, **{name: value}) for value in values)


_SMALL = ("--generator-width", "16")
_NAYER = (*_SMALL, "--noise-features", "64", "--text", "clip")
CLASSES = (10, 1000, 5000, 21_843)
TEACHERS = ("wrn16_2", "wrn40_1", "wrn40_2", "resnet18")

AXES: dict[str, Axis] = {
    "classes": Axis(
        label="classes, text vectors (NAYER)",
        points=_along("classes", "num_classes", CLASSES, flags=_NAYER),
        expected="a classifier, its loss and its optimiser: linear in the classes",
        anchor=1,
        linear=True,
        most=1.5,
    ),
    "classes-priority": Axis(
        label="classes, priorities and class statistics (SSD-KD)",
        points=_along("classes-priority", "num_classes", CLASSES, method="ssdkd", flags=_SMALL),
        expected="a classifier, its loss and its optimiser: linear in the classes",
        anchor=1,
        linear=True,
        most=1.5,
    ),
    "pixels": Axis(
        label="pixels of a side",
        points=_along("pixels", "image_size", (32, 64, 128, 224), teacher="wrn16_2", student="wrn16_1", batch_size=8),
        expected="the networks' FLOPs",
    ),
    "batch": Axis(
        label="images in a batch",
        points=_along("batch", "batch_size", (16, 64, 192), teacher="wrn16_2", student="wrn16_1"),
        expected="the networks' FLOPs",
    ),
    "processes": Axis(
        label="processes that share a batch of 64, processor time of all",
        points=_along("processes", "ranks", (1, 2), teacher="wrn16_2", student="wrn16_1"),
        expected="the same work: constant",
        constant=True,
        most=1.25,
    ),
    "depth": Axis(
        label="teacher, GFLOP of a step",
        points=tuple(
            Point(axis="depth", value=place, teacher=teacher, student="wrn16_1", batch_size=16)
            for place, teacher in enumerate(TEACHERS)
        ),
        expected="the networks' FLOPs",
    ),
}
