"""MUSE's image sizes, the pool that a data ratio allows, and the schedule on which it is filled over the epochs.

After Tran et al., "Large-Scale Data-Free Knowledge Distillation for ImageNet via Multi-Resolution Data Generation"
(MUSE): a budget is a share of the data set, counted in images of full resolution. At a lower resolution e each of them
buys (full / e)^2 images, since it is the pixels that cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.errors import UserError
from dfkd_fast.methods.recipe import rounds_in_epoch


def scaled(full_size: ImageSize, side: int) -> ImageSize:
    """The size of that shape whose shorter side is `side`. Raises UserError where the other is no whole number."""
    found = full_size.with_short(side)
    if found is None:
        step = full_size.short // math.gcd(*full_size)
        raise UserError(
            f"--method.image-sizes {side}: is the shorter side of images in the shape of {full_size}, whose longer one "
            f"would be no whole number; choose a multiple of {step}"
        )
    return found


def data_ratio_capacity(data_size: int, ratio: float, *, full_size: Size, image_size: Size) -> int:
    """Images of `image_size` that `ratio` (1.0: all) of `data_size` images of `full_size` and the same shape pay for.

    ImageNet-1k counts as 1,000 images a class: 10 % of 1,000,000 at 224 px is 400,000 at 112 px.
    """
    full, size = ImageSize.of(full_size), ImageSize.of(image_size)
    return round(data_size * ratio * (full.short / size.short) ** 2)


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """Which epochs make how many batches of images, for a pool of `capacity`."""

    capacity: int
    """images that the pool may hold"""
    batch_size: int
    """images made in one round"""
    epochs: int
    """epochs of the whole run"""
    most: int
    """most rounds in one epoch"""
    endless: bool = False
    """`most` rounds in every epoch, whatever the capacity: for a pool that drops its oldest images"""

    def rounds(self, epoch: int) -> int:
        """Rounds in this epoch."""
        if self.endless:
            return self.most
        spread = rounds_in_epoch(epoch, epochs=self.epochs, capacity=self.capacity, batch_size=self.batch_size)
        return min(self.most, spread)

    def before(self, epoch: int) -> int:
        """Rounds in all epochs before this one."""
        return sum(map(self.rounds, range(epoch)))

    def last_made(self, epoch: int) -> int | None:
        """The last epoch before this one that has rounds; None if there is none."""
        return next((earlier for earlier in reversed(range(epoch)) if self.rounds(earlier)), None)
