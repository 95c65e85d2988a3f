"""The memory pool: uint8 images with their labels, one write path and one read path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dfkd_fast.augment import CropFlip, draw_crop_flip
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.pool.journal import Journal
from dfkd_fast.runtime import Runtime
from dfkd_kernels import gather_augment

Quantize = Literal["round", "truncate"]


class PoolBatch(NamedTuple):
    """What a student step reads."""

    images: Tensor
    """(B, C, H, W), augmented and normalised, in the compute dtype"""
    labels: Tensor
    """(B,) int64, the class each image was made for"""
    indices: Tensor
    """(B,) int64 slots"""
    extras: Mapping[str, Tensor]
    """one (B, ...) tensor for each extra the pool holds"""


@dataclass(frozen=True, kw_only=True)
class View:
    """How stored pixels become network input: zero-padded random crop, flip, normalisation."""

    info: ModelInfo
    pad: int
    flip: bool

    def draw(self, batch_size: int, device: torch.device) -> CropFlip:
        """Random parameters for one batch, from the device's default generator."""
        return draw_crop_flip(batch_size, pad=self.pad, flip=self.flip, device=device)


class Pool:
    """A pool of fixed capacity on one device.

    The whole capacity is reserved at the start, so addresses never move; pages of host memory are only touched as they
    fill.
    `policy` "append" refuses to grow beyond the capacity; "ring" overwrites the oldest slots.
    With a journal, what is added is also appended there and survives the process.
    """

    def __init__(
        self,
        capacity: int,
        image_shape: tuple[int, int, int],
        *,
        runtime: Runtime,
        journal: Journal | None = None,
        policy: Literal["append", "ring"] = "append",
        quantize: Quantize = "round",
    ) -> None:
        if capacity < 1:
            raise ValueError(f"pool capacity {capacity}: choose 1 or more")
        channels, height, width = image_shape
        self.capacity, self.runtime, self.journal = capacity, runtime, journal
        self.policy, self.quantize = policy, quantize
        self.images = torch.empty((capacity, height, width, channels), dtype=torch.uint8, device=runtime.device)
        self.labels = torch.empty(capacity, dtype=torch.int64, device=runtime.device)
        self.extras: dict[str, Tensor] = {}
        self.written = 0
        """images ever added; the slot of the next one is this modulo the capacity"""

    def __len__(self) -> int:
        return min(self.written, self.capacity)

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor, **extras: Tensor) -> Tensor:
        """Store images (B, C, H, W) in [0, 1] as uint8, with labels (B,) and extras (B, ...). Returns their slots (B,).

        Raises ValueError for images that are not finite, which never enter the pool, and for more than the capacity.
        """
        if not torch.isfinite(images).all():
            raise ValueError("pool: the images to add are not finite; the loss has diverged")
        if self.policy == "append" and self.written + len(images) > self.capacity:
            raise ValueError(f"pool: {self.written} + {len(images)} images exceed the capacity of {self.capacity}")
        fields = {"images": self._pixels(images), "labels": labels, **extras}
        slots = self._store(fields)
        if self.journal is not None:
            self.journal.append(fields)
        return slots

    def read(self, indices: Tensor, view: View) -> PoolBatch:
        """Gather, crop, flip and normalise slots (B,) int64 in one pass."""
        params = view.draw(len(indices), self.images.device)
        images = gather_augment(
            self.images,
            indices,
            params.shifts,
            params.flips,
            view.info.mean,
            view.info.std,
            pad=view.pad,
            dtype=self.runtime.compute_dtype,
            memory_format=self.runtime.memory_format,
        )
        extras = {name: values[indices] for name, values in self.extras.items()}
        return PoolBatch(images, self.labels[indices], indices, extras)

    def newest(self, count: int) -> tuple[Tensor, Tensor]:
        """The last `count` images added (B, H, W, C) uint8 and their labels (B,)."""
        count = min(count, len(self))
        slots = torch.arange(self.written - count, self.written, device=self.images.device) % self.capacity
        return self.images[slots], self.labels[slots]

    def flush(self) -> dict[str, int]:
        """Wait until what was added is on the disk; returns the manifest that a checkpoint records."""
        if self.journal is None:
            return {"count": self.written}
        return self.journal.flush()

    def restore(self, manifest: Mapping[str, int]) -> None:
        """Fill an empty pool from its journal as it was when `manifest` was taken; what came later is dropped."""
        if self.journal is None:
            raise ValueError("pool: a pool without a journal cannot be restored")
        fields = self.journal.truncate(manifest["count"])
        if not fields:
            return
        kept = min(manifest["count"], self.capacity)
        self.written = manifest["count"] - kept
        self._store({name: values[-kept:] for name, values in fields.items()})

    def _store(self, fields: Mapping[str, Tensor]) -> Tensor:
        count = len(fields["labels"])
        device = self.images.device
        slots = (torch.arange(count, device=device) + self.written) % self.capacity
        for name, values in fields.items():
            self._column(name, values)[slots] = values.to(device)
        self.written += count
        return slots

    def _column(self, name: str, like: Tensor) -> Tensor:
        if name in ("images", "labels"):
            return self.images if name == "images" else self.labels
        if name not in self.extras:
            self.extras[name] = like.new_zeros((self.capacity, *like.shape[1:]), device=self.images.device)
        return self.extras[name]

    def _pixels(self, images: Tensor) -> Tensor:
        scaled = images.permute(0, 2, 3, 1).clamp(0, 1) * 255
        return (scaled.round() if self.quantize == "round" else scaled).to(torch.uint8)
