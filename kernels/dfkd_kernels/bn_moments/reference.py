"""What the fused kernels compute, in plain torch: the specification, differentiable by autograd, exact in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .moments import Moments

NONE, RELU, RELU6 = 0, 1, 2
ACTIVATIONS: dict[str | None, int] = {None: NONE, "relu": RELU, "relu6": RELU6}
L2, L2_SQUARED = 0, 1
KINDS = {"l2": L2, "l2_squared": L2_SQUARED}


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


def moment_loss(
    moments: Sequence[Moments],
    targets: Sequence[tuple[Tensor, Tensor]],
    *,
    kind: int,
    weights: Tensor | None,
    ema: tuple[Sequence[tuple[Tensor, Tensor]], Tensor] | None,
    unbiased: bool,
) -> Tensor:
    """sum over layers of w_l (d(mean_l, target mean_l) + d(var_l, target var_l)), d the L2 distance or its square."""
    total = moments[0].sum.new_zeros(())
    for index, (layer, (target_mean, target_var)) in enumerate(zip(moments, targets, strict=True)):
        # the difference first: shift and target are close, their sum with a small delta would round it away
        mean_gap = layer.sum / layer.count + (layer.shift - target_mean)
        var_gap = layer.var(unbiased) - target_var
        if ema is not None:
            averages, momentum = ema
            mean_gap = torch.lerp(mean_gap, averages[index][0] - target_mean, momentum)
            var_gap = torch.lerp(var_gap, averages[index][1] - target_var, momentum)
        term = _distance(mean_gap, kind) + _distance(var_gap, kind)
        total = total + (term if weights is None else weights[index] * term)
    return total


def _distance(gap: Tensor, kind: int) -> Tensor:
    # torch's norm has the subgradient 0 at 0, which is what a matched layer must give
    return gap.square().sum() if kind == L2_SQUARED else torch.linalg.vector_norm(gap)


def _centre(x: Tensor, shift: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x.dtype)) - shift.view(_per_channel_shape(x))


def _per_channel_shape(x: Tensor) -> list[int]:
    return [-1] + [1] * (x.dim() - 2)


def _moments(centred: Tensor, shift: Tensor) -> Moments:
    dims = [dim for dim in range(centred.dim()) if dim != 1]
    count = centred.new_full((), centred.numel() // centred.shape[1])
    return Moments(centred.sum(dims), centred.square().sum(dims), shift, count)
