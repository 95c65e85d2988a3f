"""What loop and method hand each other."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfkd_fast.files.image_rows import ImageRows
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.parallel.global_batch import LOCAL_BATCH, GlobalBatch

LossTerms = dict[str, Tensor]
"""scalar loss terms by name; term `x` is weighted by the config's `x_weight`"""

_NO_EXTRAS: Mapping[str, Tensor] = MappingProxyType({})


class SynthBatch(NamedTuple):
    """What one synthesis round leaves to the pool."""

    images: Tensor
    """(B, C, H, W) in [0, 1], not normalised"""
    labels: Tensor
    """(B,) int64, the class each image was made for, or is counted as"""
    extras: Mapping[str, Tensor] = _NO_EXTRAS
    """further (B, ...) tensors to keep with the images; a student batch has them under the same names"""
    initial_priorities: Tensor | None = None
    """(B,) first priorities of the images, where the method's pool has priorities"""

    def gathered(self, global_batch: GlobalBatch) -> SynthBatch:
        """What all ranks have made."""
        extras = {name: global_batch.all_gather(value) for name, value in self.extras.items()}
        initial_priorities = (
            None if self.initial_priorities is None else global_batch.all_gather(self.initial_priorities)
        )
        return SynthBatch(
            global_batch.all_gather(self.images), global_batch.all_gather(self.labels), extras, initial_priorities
        )


class CollectedImages(NamedTuple):
    """Real images that somebody has collected, for a method that is not data-free in the strict sense."""

    pixels: Tensor | ImageRows
    """(N, H, W, C) uint8; or rows of a file, which are read as they are needed"""
    labels: Tensor
    """(N,) int64"""

    @classmethod
    def noise(cls, info: ModelInfo, count: int = 256) -> CollectedImages:
        """Made-up ones, where only the cost of a step matters."""
        pixels = torch.randint(256, (count, info.image_size, info.image_size, info.in_chans), dtype=torch.uint8)
        return cls(pixels, torch.arange(count) % info.num_classes)


class Setup(NamedTuple):
    """What a method is given to build itself from."""

    teacher: FrozenNet
    student: nn.Module
    """the student's frozen twin: shares its storage, eval, no weight gradients"""
    info: ModelInfo
    """what teacher and student agree on: classes, image size, mean and std"""
    label_embeddings: Tensor
    """(K, D), what a class is called (`--text`)"""
    text: str = "file"
    """where they are from, a name of `text.SOURCES`; `file`: of unknown origin"""
    collected: CollectedImages | None = None
    """this rank's part of `--collected`; given where `Method.needs_data`"""
    global_batch: GlobalBatch = LOCAL_BATCH
    """this rank's rows of the batch, where all ranks make one; the config's sizes are the whole batch's then"""
