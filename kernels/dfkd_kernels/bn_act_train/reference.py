"""The fused kernels' specification in plain torch: differentiable by autograd, exact in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bn_act_moments.reference import accumulation_dtype


def bn_act_train(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, slope: float
) -> tuple[Tensor, Tensor]:
    """act(bn(x) [+ residual]) of x's dtype, and stats (3, C): batch mean, 1 / sqrt(variance + eps), unbiased variance.

    x (N, C, *), vectors (C,). act(v) is v above zero and slope * v elsewhere: 1 is no activation, 0 is relu.
    """
    dims = [dim for dim in range(x.dim()) if dim != 1]
    shape = [-1] + [1] * (x.dim() - 2)
    wide = x.to(accumulation_dtype(x.dtype))
    mean = wide.mean(dims)
    centred = wide - mean.view(shape)
    var = centred.square().mean(dims)
    rstd = torch.rsqrt(var + eps)
    y = centred * rstd.view(shape)
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    y = activate(y, residual, slope)
    count = x.numel() // x.shape[1]
    return y.to(x.dtype), torch.stack([mean, rstd, var * (count / (count - 1))]).detach()


def activate(y: Tensor, residual: Tensor | None, slope: float) -> Tensor:
    """act(y [+ residual]) by torch's own functions."""
    if residual is not None:
        y = y + residual
    if slope == 1:
        return y
    return F.relu(y) if slope == 0 else F.leaky_relu(y, slope)
