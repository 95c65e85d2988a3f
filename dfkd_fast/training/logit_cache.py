"""`--cache-teacher-logits N`: N fixed augmentations of every image, each answered by the teacher once.

A student step then runs no teacher: it reads the logits beside the images. The student sees N crops and flips of an
image in place of all of them, so results change.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dfkd_fast.augment import CropFlip
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Method
from dfkd_fast.methods.recipe import Crops
from dfkd_fast.models.teacher import FrozenNet, NetOutput
from dfkd_fast.pool.pool import Pool, PoolBatch
from dfkd_fast.pool.quantize import to_bytes
from dfkd_fast.pool.stream import AugmentSpec
from dfkd_fast.pool.stream_kernel import augment
from dfkd_fast.rng import derive_seed

FLAG = "--cache-teacher-logits"
EXTRA = "teacher_logits"


@dataclass(frozen=True, kw_only=True)
class FixedAugment(AugmentSpec):
    """A view with `count` augmentations, the same for all images, drawn without replacement by `seed`."""

    count: int
    seed: int

    def draw(self, batch_size: int, device: torch.device, generator: torch.Generator | None = None) -> CropFlip:
        """One of the augmentations for each image, and which."""
        choices = torch.randint(self.count, (batch_size,), device=device, generator=generator)
        shifts, flips = augmentations(self, device)
        return CropFlip(shifts[choices], flips[choices], choices)


@functools.cache
def augmentations(view: FixedAugment, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shifts (count, 2) and flips (count,) of a view's augmentations."""
    steps, sides = torch.arange(-view.pad, view.pad + 1), torch.arange(1 + view.flip)
    every = torch.cartesian_prod(steps, steps, sides)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(view.seed))
    chosen = every[order[: view.count]].to(device)
    return chosen[:, :2], chosen[:, 2].bool()


def possible_views(crops: Crops) -> int:
    """How many padded crops and flips of an image there are."""
    return (2 * crops.pad + 1) ** 2 * (1 + crops.flip)


def resolved_count(count: int | Literal["auto"]) -> int:
    """The number of answers to an image. Raises UserError where it is still left to the machine."""
    if count == "auto":
        raise UserError(f"{FLAG} auto: `dfkd-fast train` measures what it comes to; from Python give a number")
    return count


class LogitCache:
    """The teacher's cached answers to the augmentations of `view`, kept in the pool as an extra of each image."""

    def __init__(self, count: int, *, seed: int, method: Method, teacher: FrozenNet) -> None:
        """Raises UserError for more augmentations than there are or crops drawn anew in each step, in any size; and for
        a method without a pool, or whose student learns from more of the teacher than logits, or from other views than
        the pool's.
        """
        scale, pad, flip = method.config.student_crops
        possible = possible_views(method.config.student_crops)
        own_view = type(method).student_view is not Method.student_view
        if method.loop == "stepwise":
            raise UserError(f"{FLAG} {count}: this method keeps no images; leave it out")
        reads = method.student_reads()
        if reads.teacher or reads.teacher_features or own_view or teacher.window.is_led:
            raise UserError(f"{FLAG} {count}: this student learns from more than logits of fixed views; leave it out")
        if scale < 1:
            raise UserError(f"{FLAG} {count}: random resized crops of {scale:g} and more cannot be fixed; leave it out")
        if count > possible:
            raise UserError(f"{FLAG} {count}: choose at most {possible}, all crops and flips that there are")
        self.teacher = teacher
        self.view = FixedAugment(info=method.info, pad=pad, flip=flip, count=count, seed=seed)

    def extra_bytes(self, runtime: Runtime) -> int:
        """What the answers to one image take in the pool."""
        return self.view.count * self.view.info.num_classes * runtime.compute_dtype.itemsize

    @torch.no_grad()
    def answers(self, images: Tensor, pool: Pool) -> Tensor:
        """Images (B, C, H, W) in [0, 1], as the pool is about to store them -> logits (B, count, K)."""
        runtime, pixels = pool.runtime, to_bytes(images, pool.quantize)
        rows, found = torch.arange(len(pixels), device=pixels.device), []
        for shift, flip in zip(*augmentations(self.view, pixels.device), strict=True):
            params = CropFlip(shift.expand(len(pixels), 2), flip.expand(len(pixels)))
            with runtime.autocast():
                found.append(self.teacher.logits(augment(pixels, rows, params, view=self.view, runtime=runtime)))
        return torch.stack(found, dim=1)

    def pick(self, batch: PoolBatch) -> NetOutput:
        """What the teacher has answered to the views of a batch: logits (B, K)."""
        assert batch.choices is not None, "a batch of the cache's view"
        rows = torch.arange(len(batch.choices), device=batch.choices.device)
        return NetOutput(batch.extras[EXTRA][rows, batch.choices])


def make_cache(count: int | Literal["auto"], *, seed: int, method: Method, teacher: FrozenNet) -> LogitCache | None:
    """The cache of `count` augmentations, which the run's `seed` chooses; None for 0."""
    number = resolved_count(count)
    return LogitCache(number, seed=derive_seed(seed, "cache"), method=method, teacher=teacher) if number else None
