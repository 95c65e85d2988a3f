"""The fused loss's specification in plain torch: differentiable by autograd, exact in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..bn_act_moments.reference import Moments

L2, L2_SQUARED = 0, 1
KINDS = {"l2": L2, "l2_squared": L2_SQUARED}


def bn_stat_loss(
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
