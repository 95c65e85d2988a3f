"""Both ends of a generator's convolutions: the memory format they read, and the dtype that pixels are made in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def in_format_of(conv: nn.Conv2d, maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) channels-last where the weights are: a linear layer's output, seen as maps, is not."""
    if conv.weight.is_contiguous(memory_format=torch.channels_last):
        return maps.contiguous(memory_format=torch.channels_last)
    return maps


def at_least_float32(values: Tensor) -> Tensor:
    """What a sigmoid or tanh is taken of. Of a bfloat16 number it has no more than 8 bits near 1, fewer than a pixel of
    the pool.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))
