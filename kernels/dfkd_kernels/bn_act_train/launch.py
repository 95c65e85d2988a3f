"""Launches of the Triton kernels of `bn_act_train`; signatures and meanings: NATIVE.md."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..bn_act_moments.launch import SUM_PARTIALS, Plan, plan
from ..bn_act_moments.triton import sum_partials_kernel
from ..layout import is_channels_last
from .triton import gradient_kernel, moments_kernel, normalize_kernel, reduce_kernel, stats_kernel

JOIN_PARTIALS: dict[str, int] = {"ROWS": 64, "COLUMNS": 32, "num_warps": 4}
"""the tile of partial moments that one program of the second stage joins at a time"""


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, slope: float
) -> tuple[Tensor, Tensor]:
    """(y, stats)"""
    reading, writing = _plans(x)
    stats = _stats(x, reading, eps)
    y = torch.empty_like(x)
    normalize_kernel[writing.grid](
        x,
        x if residual is None else residual,
        y,
        stats,
        stats if weight is None else weight,
        stats if bias is None else bias,
        slope,
        *writing.sizes,
        HAS_WEIGHT=weight is not None,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_ACT=slope != 1,
        **writing.options,
    )
    return y, stats


def _stats(x: Tensor, cut: Plan, eps: float) -> Tensor:
    """Mean, 1 / sqrt(variance + eps) and unbiased variance of each channel."""
    splits, channels = cut.grid[0], x.shape[1]
    partials = torch.empty((splits, 3, channels), dtype=torch.float32, device=x.device)
    moments_kernel[cut.grid](x, partials, *cut.sizes, **cut.options)
    stats = torch.empty((3, channels), dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(channels, JOIN_PARTIALS["COLUMNS"]),)
    stats_kernel[grid](partials, stats, splits, channels, float(cut.sizes[0]), eps, **JOIN_PARTIALS)
    return stats


def backward(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    slope: float,
    want_dresidual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dresidual, dparams)"""
    reading, writing = _plans(x)
    affine = (stats if weight is None else weight, stats if bias is None else bias)
    flags = {"HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None}
    dresidual = torch.empty_like(x) if want_dresidual else x.new_empty(0)
    told, by_y = (x, False) if y is None else (y, True)
    dparams = _parameters(dy, x, told, dresidual, stats, affine, slope, reading, {**flags, "BY_Y": by_y})
    dx = torch.empty_like(x)
    gradient_kernel[writing.grid](
        dresidual if want_dresidual else dy,  # what the residual got lies behind the activation already
        x,
        told,
        dx,
        stats,
        dparams,
        *affine,
        slope,
        float(writing.sizes[0]),
        *writing.sizes,
        **flags,
        HAS_ACT=slope != 1 and not want_dresidual,
        BY_Y=by_y and not want_dresidual,
        **writing.options,
    )
    return dx, dresidual, dparams


def _parameters(
    dy: Tensor,
    x: Tensor,
    told: Tensor,
    dresidual: Tensor,
    stats: Tensor,
    affine: tuple[Tensor, Tensor],
    slope: float,
    cut: Plan,
    flags: dict[str, bool],
) -> Tensor:
    """The gradients of weight and bias; fills `dresidual` if it has room for one."""
    splits, channels = cut.grid[0], x.shape[1]
    partials = torch.empty((splits, 2, channels), dtype=torch.float32, device=x.device)
    reduce_kernel[cut.grid](
        dy,
        x,
        told,
        dresidual,
        partials,
        stats,
        *affine,
        slope,
        *cut.sizes,
        **flags,
        HAS_ACT=slope != 1,
        WANT_DRESIDUAL=dresidual.numel() > 0,
        **cut.options,
    )
    sums = torch.empty(2 * channels + 1, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(2 * channels, SUM_PARTIALS["COLUMNS"]),)
    sum_partials_kernel[grid](partials, sums, splits, 2 * channels, float(cut.sizes[0]), **SUM_PARTIALS)
    return sums[:-1].view(2, channels)


def _plans(x: Tensor) -> tuple[Plan, Plan]:
    """How passes that add up, and passes that only write, cut x up."""
    nhwc = is_channels_last(x)
    return plan(x.shape, nhwc, "forward"), plan(x.shape, nhwc, "backward")
