"""`bn_stat_loss`: the distance of all layers' batch statistics from their targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..backend import pick
from ..bn_act_moments.reference import Moments
from ..checks import check_float, check_same_device
from ..registration import Operator, launcher, once_differentiable
from . import reference
from .reference import KINDS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Statistics = Sequence[tuple[Tensor, Tensor]]
"""(mean, var) of each layer, (C,) each"""


def bn_stat_loss(
    moments: Sequence[Moments],
    targets: Statistics,
    *,
    kind: str = "l2",
    weights: Sequence[float] | Tensor | None = None,
    ema: tuple[Statistics, Tensor | float] | None = None,
    unbiased: bool = False,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Distance of batch statistics from their targets (DeepInversion, arXiv:1912.08795, Eq. 4).

    sum over layers of w_l (||mean_l - target mean_l|| + ||var_l - target var_l||)

    Args:
        moments: one `Moments` per layer, as `bn_act_moments` or a `FrozenTeacher` gives them.
        targets: (mean, var) per layer, usually (running_mean, running_var); constants, as weights and averages are.
        kind: "l2", the norms, or "l2_squared", their squares.
        weights: one factor per layer (SRe2L, arXiv:2306.13092); None: all 1. On a GPU a tensor there spares a copy that
            waits, and can be captured; a list cannot.
        ema: ((mean, var) per layer, momentum): what is compared is (1 - momentum) * batch + momentum * average (Fast,
            arXiv:2112.07438; NAYER, arXiv:2310.00258). A 0-dim tensor as momentum lets a captured graph switch it from
            0 to 0.9.
        unbiased: divide the batch variance by count - 1; the papers' codes use the biased one.
        group: sum the moments over its ranks first, with one all_reduce. Every rank gets the global batch's value, and
            for its own x the global batch's gradient: multiply the loss by the world size where gradients of weights
            are then averaged, as DDP does.

    Returns:
        a scalar, float32 (float64 for float64 inputs). A norm of exactly 0 passes no gradient.

    Raises:
        ValueError: no layer, mismatched lengths, a wrong shape, dtype, device or kind; the argument is named.
    """
    _check(moments, targets, kind, weights, ema)
    like = moments[0].sum
    targets = _constants(targets, like.dtype)
    if group is not None:
        moments = _summed_over(group, moments, [mean for mean, _ in targets])
    weights_L = None if weights is None else torch.as_tensor(weights, dtype=like.dtype, device=like.device).detach()
    if ema is not None:
        # filled on the device: a number that is copied there would wait for it, and could not be captured
        momentum = ema[1].detach().to(like) if isinstance(ema[1], Tensor) else like.new_full((), ema[1])
        ema = (_constants(ema[0], like.dtype), momentum)
    backend = pick("bn_stat_loss", like.device.type, like.dtype)
    if backend == "reference":
        return reference.bn_stat_loss(moments, targets, kind=KINDS[kind], weights=weights_L, ema=ema, unbiased=unbiased)
    sums, sums_sq, shifts, counts = (list(column) for column in zip(*moments, strict=True))
    averages, momentum_or_none = ([], None) if ema is None else ema
    vectors = [shifts, counts, *_columns(targets), *_columns(averages)]
    constants = (*vectors, momentum_or_none, weights_L, KINDS[kind], unbiased, backend)
    loss: Tensor = BnStatLoss.apply(constants, *sums, *sums_sq)
    return loss


def _constants(statistics: Statistics, dtype: torch.dtype) -> Statistics:
    """Contiguous, in the accumulation dtype, without gradient."""
    return [(_constant(mean, dtype), _constant(var, dtype)) for mean, var in statistics]


def _constant(vector: Tensor, dtype: torch.dtype) -> Tensor:
    is_one = vector.dtype == dtype and not vector.requires_grad and vector.is_contiguous()
    return vector if is_one else vector.detach().to(dtype).contiguous()


def _columns(statistics: Statistics) -> tuple[list[Tensor], list[Tensor]]:
    """All means and all variances."""
    return [mean for mean, _ in statistics], [var for _, var in statistics]


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


def _summed_over(group: ProcessGroup, moments: Sequence[Moments], shifts: Sequence[Tensor]) -> list[Moments]:
    """Moments of the global batch, about `shifts` (equal on all ranks), with one all_reduce for all layers."""
    moved = [_about(layer, shift) for layer, shift in zip(moments, shifts, strict=True)]
    packed = torch.cat([torch.cat([layer.sum, layer.sum_sq, layer.count.reshape(1)]) for layer in moved])
    total: Tensor = _SumOverRanks.apply(packed, group)
    parts = total.split([2 * layer.sum.numel() + 1 for layer in moved])
    summed = []
    for part, layer in zip(parts, moved, strict=True):
        channels = layer.sum.numel()
        sums, sums_sq, count = part.split([channels, channels, 1])
        summed.append(Moments(sums, sums_sq, layer.shift, count.detach()[0]))
    return summed


def _about(layer: Moments, shift: Tensor) -> Moments:
    """The same moments about another shift; ranks may have shifted by different samples."""
    move = layer.shift - shift
    total = layer.sum + layer.count * move
    return Moments(
        total, layer.sum_sq + move * (2 * layer.sum + layer.count * move), shift.to(layer.sum.dtype), layer.count
    )


class BnStatLoss(torch.autograd.Function):
    """(sum and sum_sq of every layer) -> loss. Its forward already computes the derivatives; backward scales them."""

    @staticmethod
    def forward(ctx: Any, constants: Sequence[Any], *sums: Tensor) -> Tensor:
        layers = len(sums) // 2
        loss, coef = bn_stat_loss_op(sums[:layers], sums[layers:], *constants)
        ctx.save_for_backward(coef)
        ctx.sizes = [layer.numel() for layer in sums]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (coef,) = ctx.saved_tensors
        return None, *(coef * grads[0]).split(ctx.sizes)


def _fake_loss(sums: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    return sums[0].new_empty(()), sums[0].new_empty(2 * sum(layer.numel() for layer in sums))


bn_stat_loss_op = Operator(
    "bn_stat_loss(Tensor[] sum, Tensor[] sum_sq, Tensor[] shift, Tensor[] count, Tensor[] target_mean,"
    " Tensor[] target_var, Tensor[] ema_mean, Tensor[] ema_var, Tensor? momentum, Tensor? weights, int kind,"
    " bool unbiased, str backend) -> (Tensor, Tensor)",
    launcher(f"{__package__}.triton", "bn_stat_loss", native="bn_stat_loss"),
    _fake_loss,
)


def _check(
    moments: Sequence[Moments],
    targets: Statistics,
    kind: str,
    weights: Sequence[float] | Tensor | None,
    ema: tuple[Statistics, Tensor | float] | None,
) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: choose 'l2' or 'l2_squared'")
    if isinstance(moments, Moments):
        raise ValueError("moments: one layer's Moments, expected a list of them")
    if not moments:
        raise ValueError("moments: empty, expected one entry per layer")
    for index, layer in enumerate(moments):
        if layer.sum.dtype != moments[0].sum.dtype:
            raise ValueError(f"moments[{index}]: dtype {layer.sum.dtype}, but moments[0] is {moments[0].sum.dtype}")
        if layer.sum.device != moments[0].sum.device:
            check_same_device(f"moments[{index}]", layer.sum, "moments[0]", moments[0].sum)
    _check_statistics("targets", targets, moments)
    if weights is not None:
        shape = tuple(weights.shape) if isinstance(weights, Tensor) else (len(weights),)
        if shape != (len(moments),):
            raise ValueError(f"weights: shape {shape}, expected ({len(moments)},), one for each entry of moments")
    if ema is not None:
        _check_statistics("ema", ema[0], moments)
        if isinstance(ema[1], Tensor) and ema[1].dim() != 0:
            raise ValueError(f"ema: momentum of shape {tuple(ema[1].shape)}, expected a number or a 0-dim tensor")


def _check_statistics(name: str, statistics: Statistics, moments: Sequence[Moments]) -> None:
    if len(statistics) != len(moments):
        raise ValueError(f"{name}: {len(statistics)} entries, but moments has {len(moments)}")
    for index, (pair, layer) in enumerate(zip(statistics, moments, strict=True)):
        if len(pair) != 2:
            raise ValueError(f"{name}[{index}]: {len(pair)} entries, expected (mean, var)")
        for vector in pair:
            like = layer.sum
            if vector.dtype == like.dtype and vector.shape == like.shape and vector.device == like.device:
                continue  # as always; what follows takes longer
            check_float(f"{name}[{index}]", vector)
            if vector.shape != layer.sum.shape:
                shape, expected = tuple(vector.shape), tuple(layer.sum.shape)
                raise ValueError(f"{name}[{index}]: shape {shape}, but moments[{index}] has {expected}")
            check_same_device(f"{name}[{index}]", vector, f"moments[{index}]", layer.sum)
