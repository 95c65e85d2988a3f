"""Training recipes as data, free of torch, so that the command line can read and show them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from dfkd_fast.config.setting import setting
from dfkd_fast.errors import unknown


@dataclass(frozen=True, kw_only=True)
class TeacherRecipe:
    """How a teacher is trained on real images: SGD with a cosine to zero. Defaults: the field's CIFAR recipe (NAYER),
    and for images of 96 pixels and more those of `LARGE`, see `style`.

    The last epoch's network is the result; test images choose nothing.
    """

    style: Literal["auto", "small", "large"] = setting("auto", formerly="auto")
    """whose values stand for settings that are not given: small, the CIFAR recipe's; large: 300 epochs of batches of
    64, learning rate 0.05, crops of 0.35 of the area and more, label smoothing 0.1; auto: large from 96 pixels on
    """

    kept: tuple[str, ...] = setting((), formerly=())
    """settings whose default is meant, and holds for large images, too (lr, label_smoothing); filled in from flags and
    files that give a default value
    """
    epochs: int = setting(200, at_least=1, at_most=10**6)
    """passes over the training images"""
    batch_size: int = setting(128, at_least=1)
    """images per step"""
    lr: float = setting(0.1, at_least=0)
    """learning rate of the first step; falls to zero along a cosine, step by step"""
    momentum: float = setting(0.9, at_least=0)
    """SGD momentum"""
    weight_decay: float = setting(5e-4, at_least=0)
    """L2 penalty on every parameter"""
    label_smoothing: float = setting(0.0, at_least=0, at_most=1)
    """share of the target probability that is spread evenly over the classes"""
    crop_padding: int = setting(4, at_least=0)
    """random crops from the image padded by this many black pixels a side; 0: no crops"""
    crop_scale: float = setting(1.0, above=0, at_most=1, formerly=1.0)
    """smallest share of an image's area in a random resized crop, which below 1 replaces the padded crop"""
    flip: bool = True
    """random horizontal flips; wrong for digits and letters"""
    seed: int = setting(0, at_most=2**63 - 1)
    """seed of the initial weights, the order of images and their augmentation"""
    precision: Literal["same", "fp32", "bf16", "fp16"] = setting("same", formerly="same")
    """numeric mode of the training, where it is not the command's own --precision; in a run in tf32 fp32 is that"""

    def for_size(self, short_side: int) -> Self:
        """What images of so many pixels on the shorter side are trained by: every value stated, the style resolved."""
        if self.style == "small" or (self.style == "auto" and short_side < LARGE_FROM):
            return replace(self, style="small", kept=())
        left = {key: value for key, value in LARGE.items() if self._is_default(key) and key not in self.kept}
        if self.crop_padding and "crop_padding" not in left:  # which resized crops would replace
            left.pop("crop_scale", None)
        return replace(self, style="large", kept=(), **left)

    def keeping(self, given: Iterable[str]) -> Self:
        """The recipe that keeps the settings of these names, which somebody has given, where they are at a default that
        a size would replace. Raises UserError for a name in `kept` that is none of those.
        """
        for key in self.kept:
            if key not in LARGE:
                raise unknown("--kept", key, LARGE)
        kept = sorted({*self.kept, *(key for key in given if key in LARGE and self._is_default(key))})
        return replace(self, kept=tuple(kept))

    def _is_default(self, key: str) -> bool:
        return any(item.name == key and getattr(self, key) == item.default for item in fields(self))


LARGE_FROM = 96
"""pixels a side from which images lose an edge in evaluation, too"""
LARGE: dict[str, Any] = {
    "epochs": 300,
    "batch_size": 64,
    "lr": 0.05,
    "label_smoothing": 0.1,
    "crop_padding": 0,
    "crop_scale": 0.35,
}
"""for thousands of images of up to 224 pixels, not millions (Imagenette, Imagewoof, HAM10000): crops and smoothing are
those of fastai's Imagenette table; schedule and rate are ours
"""
