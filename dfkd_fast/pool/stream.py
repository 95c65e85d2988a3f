"""Batches that a pool hands out, and the base of all streams: a queue of batches, each drawn as the pool then was."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dfkd_fast.augment import CropFlip, draw_crop_flip
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.pool.storage import Storage


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """How stored pixels become network input: zero-padded random crop, flip, normalisation."""

    info: ModelInfo
    pad: int
    flip: bool

    def draw(self, batch_size: int, device: torch.device, generator: torch.Generator | None = None) -> CropFlip:
        """Random parameters for one batch."""
        return draw_crop_flip(batch_size, pad=self.pad, flip=self.flip, device=device, generator=generator)


class Gathered(NamedTuple):
    """A batch as a stream hands it out, on the network's device."""

    images: Tensor
    """(B, C, H, W), augmented and normalised"""
    extras: Mapping[str, Tensor]
    """(B, ...) each"""


class Stream(Protocol):
    """Turns slots and augmentation parameters into batches. Any number of pushes may run ahead of the pops, up to the
    depth that the stream was made for plus one.
    """

    def push(self, slots: Tensor, params: CropFlip) -> None:
        """Start on the batch of the slots (B,) int64."""

    def pop(self) -> Gathered:
        """The oldest batch that was pushed; its memory is the caller's."""

    def settle(self) -> None:
        """Wait until no batch that was pushed reads the pool any more, so that it may change."""

    def close(self) -> None:
        """End threads and give back memory."""


class DirectStream:
    """A stream without a pipeline: a batch is made where it is pushed.

    `augment` maps (all images, rows, parameters) to network input.
    """

    def __init__(self, storage: Storage, augment: Callable[[Tensor, Tensor, CropFlip], Tensor]) -> None:
        self.storage, self.augment = storage, augment
        self._made: deque[Gathered] = deque()

    def push(self, slots: Tensor, params: CropFlip) -> None:
        rows = self.storage.locate(slots)
        images = self.augment(self.storage.column("images"), rows, params)
        self._made.append(Gathered(images, on_device(gather_extras(self.storage, rows), images.device)))

    def pop(self) -> Gathered:
        return self._made.popleft()

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self._made.clear()


def on_device(extras: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Extras that a host thread has gathered, for the network."""
    return {name: values.to(device, non_blocking=True) for name, values in extras.items()}


def gather_extras(storage: Storage, rows: Tensor) -> dict[str, Tensor]:
    """The rows of every column but the images."""
    return {name: storage.column(name)[rows] for name in storage.extras()}


class PoolBatch(NamedTuple):
    """What a student step reads."""

    images: Tensor
    """(B, C, H, W), augmented and normalised, in the compute dtype"""
    labels: Tensor
    """(B,) int64, the class each image was made for; -1 where nobody knows"""
    indices: Tensor
    """(B,) int64 slots"""
    extras: Mapping[str, Tensor]
    """one (B, ...) tensor for each extra the pool holds"""
    is_weights: Tensor | None = None
    """(B,) importance weights of a sampler that prefers some slots"""
    choices: Tensor | None = None
    """(B,) int64: which of the view's fixed augmentations, where it has such"""
