"""The two memory layouts that the kernels know: rows of channels (channels-last), and planes of one channel (NC*)."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether x (N, C, *) is dense with the channel as its fastest dimension. (N, C) is."""
    if x.dim() == 2:
        return x.is_contiguous()
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def dense(x: Tensor) -> Tensor:
    """x itself if it has one of the two layouts, else a contiguous copy."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def laid_out_like(tensor: Tensor, x: Tensor) -> Tensor:
    """`tensor`, of x's shape, in the layout that `is_channels_last` says x has; copied only if it has the other one."""
    if not is_channels_last(x):
        return tensor.contiguous()
    if is_channels_last(tensor):
        return tensor
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
