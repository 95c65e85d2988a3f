"""What the fused kernels compute, in plain torch: the specification, differentiable by autograd, exact in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .moments import Moments

NONE, RELU, RELU6 = 0, 1, 2
ACTIVATIONS: dict[str | None, int] = {None: NONE, "relu": RELU, "relu6": RELU6}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def bn_act_moments(
    x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, act: int
) -> tuple[Tensor, Moments]:
    """act((x - shift) * scale + bias [+ residual]) and the moments of x about `shift`. x (N, C, *), vectors (C,)."""
    centred = _centre(x, shift)
    per_channel = _per_channel_shape(x)
    y = centred * scale.view(per_channel) + bias.view(per_channel)
    if residual is not None:
        y = y + residual
    if act == RELU:
        y = F.relu(y)
    elif act == RELU6:
        y = F.relu6(y)
    return y.to(x.dtype), _moments(centred, shift)


def batch_moments(x: Tensor, shift: Tensor) -> Moments:
    """Moments of x (N, C, *) about `shift` (C,)."""
    return _moments(_centre(x, shift), shift)


def _centre(x: Tensor, shift: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x.dtype)) - shift.view(_per_channel_shape(x))


def _per_channel_shape(x: Tensor) -> list[int]:
    return [-1] + [1] * (x.dim() - 2)


def _moments(centred: Tensor, shift: Tensor) -> Moments:
    dims = [dim for dim in range(centred.dim()) if dim != 1]
    count = centred.new_full((), centred.numel() // centred.shape[1])
    return Moments(centred.sum(dims), centred.square().sum(dims), shift, count)
