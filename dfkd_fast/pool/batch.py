"""Batches that a pool hands out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


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
