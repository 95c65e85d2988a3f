"""Normalisation of a teacher that is trained here: the pixel statistics of its training images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def compute_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation (at least one grey level) of each channel over all pixels of (N, H, W, C) uint8."""
    total = torch.zeros(images.shape[-1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for pixels in images.flatten(0, 2).split(1 << 20):
        values = pixels.long()
        total += values.sum(0)
        squares += values.square().sum(0)
    count = images[..., 0].numel()
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).sqrt().clamp_min(1.0)
    return Statistics(tuple((mean / 255).tolist()), tuple((std / 255).tolist()))
