"""Moments of a batch that is spread over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..bn_moments.moments import Moments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _SumOverRanks(torch.autograd.Function):
    """all_reduce(SUM) of a value that every rank then uses in the same way: each rank's part has the sum's gradient."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, group: ProcessGroup) -> Tensor:
        total = packed.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def summed_over(group: ProcessGroup, moments: Sequence[Moments], shifts: Sequence[Tensor]) -> list[Moments]:
    """Moments of the joined batch, about `shifts` (equal on all ranks), with one all_reduce for all layers."""
    moved = [_about(layer, shift) for layer, shift in zip(moments, shifts, strict=True)]
    packed = torch.cat([torch.cat([layer.sum, layer.sum_sq, layer.count.reshape(1)]) for layer in moved])
    total: Tensor = _SumOverRanks.apply(packed, group)
    parts = total.split([2 * layer.sum.numel() + 1 for layer in moved])
    joined = []
    for part, layer in zip(parts, moved, strict=True):
        channels = layer.sum.numel()
        sums, sums_sq, count = part.split([channels, channels, 1])
        joined.append(Moments(sums, sums_sq, layer.shift, count.detach()[0]))
    return joined


def _about(layer: Moments, shift: Tensor) -> Moments:
    """The same moments about another shift; ranks may have shifted by different samples."""
    move = layer.shift - shift
    total = layer.sum + layer.count * move
    return Moments(
        total, layer.sum_sq + move * (2 * layer.sum + layer.count * move), shift.to(layer.sum.dtype), layer.count
    )
