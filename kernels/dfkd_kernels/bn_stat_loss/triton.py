"""Triton form of `bn_stat_loss`: all layers' norms and their derivatives in one launch, however many layers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import L2_SQUARED

BLOCK = 1024
_L2_SQUARED = tl.constexpr(L2_SQUARED)


@triton.jit
def _gaps(packed_ptr, total, at, mask, count, correction, momentum, HAS_EMA: tl.constexpr):
    """delta = mean - shift, and the differences of mean and variance from their targets, for the channels `at`."""
    delta = tl.load(packed_ptr + at, mask=mask, other=0.0) / count
    mean_sq = tl.load(packed_ptr + total + at, mask=mask, other=0.0) / count
    shift = tl.load(packed_ptr + 2 * total + at, mask=mask, other=0.0)
    target_mean = tl.load(packed_ptr + 3 * total + at, mask=mask, other=0.0)
    target_var = tl.load(packed_ptr + 4 * total + at, mask=mask, other=0.0)
    mean_gap = delta + (shift - target_mean)
    var_gap = (mean_sq - delta * delta) * correction - target_var
    if HAS_EMA:
        ema_mean = tl.load(packed_ptr + 5 * total + at, mask=mask, other=0.0)
        ema_var = tl.load(packed_ptr + 6 * total + at, mask=mask, other=0.0)
        mean_gap += momentum * ((ema_mean - target_mean) - mean_gap)
        var_gap += momentum * ((ema_var - target_var) - var_gap)
    return delta, tl.where(mask, mean_gap, 0.0), tl.where(mask, var_gap, 0.0)


@triton.jit
def bn_stat_loss_kernel(
    packed_ptr,  # float32, (T,) each: sum, sum_sq, shift, target mean, target var[, average mean, average var]
    counts_ptr,  # (L,) float32
    offsets_ptr,  # (L + 1,) int32: where each layer's channels begin in T
    momentum_ptr,  # () float32, read only if HAS_EMA
    weights_ptr,  # (L,) float32, read only if HAS_WEIGHTS
    terms_ptr,  # (L,) float32
    coef_ptr,  # (2, T) float32: derivatives by sum and by sum_sq
    total,
    KIND: tl.constexpr,
    UNBIASED: tl.constexpr,
    HAS_EMA: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    layer = tl.program_id(0)
    first = tl.load(offsets_ptr + layer)
    last = tl.load(offsets_ptr + layer + 1)
    count = tl.load(counts_ptr + layer)
    weight = 1.0
    if HAS_WEIGHTS:
        weight = tl.load(weights_ptr + layer)
    momentum = 0.0
    if HAS_EMA:
        momentum = tl.load(momentum_ptr)
    correction = 1.0
    if UNBIASED:
        correction = count / (count - 1.0)
    mean_sq = tl.zeros([BLOCK], tl.float32)
    var_sq = tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, BLOCK):
        at = start + tl.arange(0, BLOCK)
        _, mean_gap, var_gap = _gaps(packed_ptr, total, at, at < last, count, correction, momentum, HAS_EMA)
        mean_sq += mean_gap * mean_gap
        var_sq += var_gap * var_gap
    mean_square, var_square = tl.sum(mean_sq, 0), tl.sum(var_sq, 0)
    if KIND == _L2_SQUARED:
        term = mean_square + var_square
        by_mean, by_var = 2.0 * weight, 2.0 * weight
    else:
        mean_norm, var_norm = tl.sqrt_rn(mean_square), tl.sqrt_rn(var_square)
        term = mean_norm + var_norm
        # a norm of 0 has the subgradient 0, as torch's norm takes it
        by_mean = weight / tl.where(mean_norm > 0.0, mean_norm, float("inf"))
        by_var = weight / tl.where(var_norm > 0.0, var_norm, float("inf"))
    tl.store(terms_ptr + layer, term * weight)
    share = (1.0 - momentum) / count
    for start in range(first, last, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < last
        delta, mean_gap, var_gap = _gaps(packed_ptr, total, at, mask, count, correction, momentum, HAS_EMA)
        by_sum_sq = share * correction * by_var * var_gap
        tl.store(coef_ptr + at, share * by_mean * mean_gap - 2.0 * delta * by_sum_sq, mask=mask)
        tl.store(coef_ptr + total + at, by_sum_sq, mask=mask)


def bn_stat_loss(
    sums: Sequence[Tensor],
    sums_sq: Sequence[Tensor],
    shifts: Sequence[Tensor],
    counts: Sequence[Tensor],
    target_means: Sequence[Tensor],
    target_vars: Sequence[Tensor],
    ema_means: Sequence[Tensor],
    ema_vars: Sequence[Tensor],
    momentum: Tensor | None,
    weights: Tensor | None,
    kind: int,
    unbiased: bool,
) -> tuple[Tensor, Tensor]:
    """(loss, coef), see NATIVE.md. One concatenation gathers the vectors, so that no pointer table is needed."""
    offsets = _offsets(tuple(layer.numel() for layer in sums), sums[0].device)
    packed = torch.cat([*sums, *sums_sq, *shifts, *target_means, *target_vars, *ema_means, *ema_vars])
    total = sum(layer.numel() for layer in sums)
    counts_L = torch.stack(list(counts))
    terms = torch.empty_like(counts_L)
    coef = packed.new_empty(2 * total)
    bn_stat_loss_kernel[(len(sums),)](
        packed,
        counts_L,
        offsets,
        counts_L if momentum is None else momentum,
        counts_L if weights is None else weights,
        terms,
        coef,
        total,
        KIND=kind,
        UNBIASED=unbiased,
        HAS_EMA=momentum is not None,
        HAS_WEIGHTS=weights is not None,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return terms.sum(), coef


@functools.lru_cache(maxsize=64)
def _offsets(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept per network: making it at each call would copy from the host, which a CUDA graph cannot capture."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return torch.tensor(starts, dtype=torch.int32, device=device)
