"""Triton kernels of `bn_act_moments` and `batch_moments`: one pass over x forward, one elementwise pass backward.

Shapes: x is (N, C, *) with S positions per sample, dense. A tile is (ROWS, CHANNELS): in channels-last layout ROWS of
the N S rows of C values; in NC* layout ROWS positions of one sample's planes. Every program walks a run of tiles of
one block of channels, keeps its sums in registers and writes one row of `partials`; a second kernel adds the rows in a
fixed order. The number of programs depends on the shape alone, so the sums are the same bits on every run and GPU.
"""

import triton
import triton.language as tl

from .reference import GELU, GELU_TANH, HARDSIGMOID, HARDSWISH, LEAKY_RELU, NONE, RELU, RELU6, SILU

_NONE, _RELU, _RELU6 = tl.constexpr(NONE), tl.constexpr(RELU), tl.constexpr(RELU6)
_SILU, _HARDSWISH, _HARDSIGMOID = tl.constexpr(SILU), tl.constexpr(HARDSWISH), tl.constexpr(HARDSIGMOID)
_GELU, _GELU_TANH, _LEAKY_RELU = tl.constexpr(GELU), tl.constexpr(GELU_TANH), tl.constexpr(LEAKY_RELU)


@triton.jit
def tile_of(tile, channel, channel_mask, num_rows, num_channels, num_positions, NHWC: tl.constexpr, ROWS: tl.constexpr):
    """Start of a tile (int64), offsets in it and their mask, (ROWS, CHANNELS)."""
    if NHWC:
        row = tl.arange(0, ROWS)
        first = tile.to(tl.int64) * ROWS
        start = first * num_channels
        offset = row[:, None] * num_channels + channel[None, :]
        inside = first + row < num_rows
    else:
        tiles_per_sample = tl.cdiv(num_positions, ROWS)
        position = (tile % tiles_per_sample) * ROWS + tl.arange(0, ROWS)
        start = (tile // tiles_per_sample).to(tl.int64) * num_channels * num_positions
        offset = channel[None, :] * num_positions + position[:, None]
        inside = position < num_positions
    return start, offset, inside[:, None] & channel_mask[None, :]


@triton.jit
def _clamp(value, high: tl.constexpr):
    """To [0, high]; NaN stays."""
    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(value, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _sigmoid_argument(value, ACT: tl.constexpr):
    """u of silu and of gelu's tanh form, which are value * sigmoid(u)."""
    u = value
    if ACT == _GELU_TANH:
        u = value * (1.5957691 + 0.07135481 * value * value)
    return u


@triton.jit
def _activate(pre, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """act(pre)"""
    y = pre
    if ACT == _RELU:
        y = tl.maximum(pre, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == _RELU6:
        y = _clamp(pre, 6.0)
    elif ACT == _HARDSIGMOID:
        y = _clamp(pre + 3.0, 6.0) * (1.0 / 6.0)
    elif ACT == _HARDSWISH:
        y = pre * _clamp(pre + 3.0, 6.0) * (1.0 / 6.0)
    elif ACT == _SILU or ACT == _GELU_TANH:  # noqa: SIM109 (Triton has no `in`)
        y = pre * tl.sigmoid(_sigmoid_argument(pre, ACT))
    elif ACT == _GELU:
        y = pre * (0.5 + 0.5 * tl.erf(pre * 0.70710678))
    elif ACT == _LEAKY_RELU:
        y = tl.where(pre > 0.0, pre, pre * SLOPE)
    return y


@triton.jit
def _gradient(grad, pre, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """grad * act'(pre)"""
    if ACT == _RELU:
        grad = tl.where(pre > 0.0, grad, 0.0)
    elif ACT == _RELU6:
        grad = tl.where((pre > 0.0) & (pre < 6.0), grad, 0.0)
    elif ACT == _HARDSIGMOID:
        grad = tl.where((pre > -3.0) & (pre < 3.0), grad * (1.0 / 6.0), 0.0)
    elif ACT == _HARDSWISH:
        inside = tl.where(pre < 3.0, grad * (pre * (1.0 / 3.0) + 0.5), grad)
        grad = tl.where(pre <= -3.0, 0.0, inside)
    elif ACT == _SILU or ACT == _GELU_TANH:  # noqa: SIM109 (Triton has no `in`)
        s = tl.sigmoid(_sigmoid_argument(pre, ACT))
        slope = pre * (1.0 - s)
        if ACT == _GELU_TANH:
            slope *= 1.5957691 + 0.21406444 * pre * pre
        grad = grad * s * (1.0 + slope)
    elif ACT == _GELU:
        density = tl.exp(-0.5 * pre * pre) * 0.3989423
        grad = grad * (0.5 + 0.5 * tl.erf(pre * 0.70710678) + pre * density)
    elif ACT == _LEAKY_RELU:
        grad = tl.where(pre > 0.0, grad, grad * SLOPE)
    return grad


@triton.jit
def forward_kernel(
    x_ptr,  # (N, C, S), either layout
    residual_ptr,  # like x, read only if HAS_RESIDUAL
    y_ptr,  # like x, written only if HAS_Y
    partials_ptr,  # (P, 2, C) float32
    shift_ptr,  # (C,) float32, as scale and bias
    scale_ptr,
    bias_ptr,
    num_rows,
    num_channels,
    num_positions,
    num_tiles,
    tiles_per_program,
    ACT: tl.constexpr,
    SLOPE: tl.constexpr,
    NHWC: tl.constexpr,
    HAS_Y: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    split = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < num_channels
    shift = tl.load(shift_ptr + channel, mask=channel_mask, other=0.0)[None, :]
    if HAS_Y:
        scale = tl.load(scale_ptr + channel, mask=channel_mask, other=0.0)[None, :]
        bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0)[None, :]
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    total_sq = tl.zeros([ROWS, CHANNELS], tl.float32)
    first = split * tiles_per_program
    for step in tl.range(0, tl.minimum(tiles_per_program, num_tiles - first), num_stages=STAGES):
        tile = first + step
        start, offset, mask = tile_of(tile, channel, channel_mask, num_rows, num_channels, num_positions, NHWC, ROWS)
        x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
        centred = tl.where(mask, x - shift, 0.0)
        total += centred
        total_sq += centred * centred
        if HAS_Y:
            y = centred * scale + bias
            if HAS_RESIDUAL:
                y += tl.load(residual_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
            y = _activate(y, ACT, SLOPE)
            tl.store(y_ptr + start + offset, y.to(y_ptr.dtype.element_ty), mask=mask)
    row_ptr = partials_ptr + split.to(tl.int64) * 2 * num_channels + channel
    tl.store(row_ptr, tl.sum(total, 0), mask=channel_mask)
    tl.store(row_ptr + num_channels, tl.sum(total_sq, 0), mask=channel_mask)


@triton.jit
def sum_partials_kernel(
    partials_ptr,  # (P, 2 C) float32
    stats_ptr,  # (2 C + 1,) float32
    num_partials,
    num_columns,
    count,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    column_mask = column < num_columns
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    # few programs, each with rows from all over the memory: what it waits for must be under way in time
    for first in tl.range(0, num_partials, ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        mask = (row < num_partials)[:, None] & column_mask[None, :]
        total += tl.load(partials_ptr + row[:, None] * num_columns + column[None, :], mask=mask, other=0.0)
    tl.store(stats_ptr + column, tl.sum(total, 0), mask=column_mask)
    if tl.program_id(0) == 0:
        tl.store(stats_ptr + num_columns, count)


@triton.jit
def backward_kernel(
    dy_ptr,  # like x, read only if HAS_DY
    x_ptr,  # (N, C, S), either layout
    kept_ptr,  # like x, read only if HAS_KEPT: y where it says what passed, else the residual
    dx_ptr,  # like x
    dresidual_ptr,  # like x, written only if WANT_DRESIDUAL
    shift_ptr,  # (C,) float32, as the next four
    scale_ptr,
    bias_ptr,
    dsum_ptr,
    dsum_sq_ptr,
    num_rows,
    num_channels,
    num_positions,
    num_tiles,
    tiles_per_program,
    ACT: tl.constexpr,
    SLOPE: tl.constexpr,
    NHWC: tl.constexpr,
    HAS_DY: tl.constexpr,
    HAS_DSUM: tl.constexpr,
    HAS_KEPT: tl.constexpr,
    WANT_DRESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < num_channels
    tells: tl.constexpr = HAS_KEPT and (ACT == _RELU or ACT == _RELU6 or ACT == _LEAKY_RELU)  # noqa: SIM109
    needs_x: tl.constexpr = (ACT != _NONE) and HAS_DY and not tells
    shift = tl.load(shift_ptr + channel, mask=channel_mask, other=0.0)[None, :]
    if HAS_DY:
        scale = tl.load(scale_ptr + channel, mask=channel_mask, other=0.0)[None, :]
    if needs_x:
        bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0)[None, :]
    if HAS_DSUM:
        dsum = tl.load(dsum_ptr + channel, mask=channel_mask, other=0.0)[None, :]
        dsum_sq = 2.0 * tl.load(dsum_sq_ptr + channel, mask=channel_mask, other=0.0)[None, :]
    first = tl.program_id(0) * tiles_per_program
    for step in tl.range(0, tl.minimum(tiles_per_program, num_tiles - first), num_stages=STAGES):
        tile = first + step
        start, offset, mask = tile_of(tile, channel, channel_mask, num_rows, num_channels, num_positions, NHWC, ROWS)
        dx = tl.zeros([ROWS, CHANNELS], tl.float32)
        if HAS_DSUM or needs_x:
            centred = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32) - shift
        if HAS_DY:
            grad = tl.load(dy_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
            if HAS_KEPT:
                kept = tl.load(kept_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
            if needs_x:
                pre = centred * scale + bias
                if HAS_KEPT:
                    pre += kept
                grad = _gradient(grad, pre, ACT, SLOPE)
            elif tells:
                grad = _gradient(grad, kept, ACT, SLOPE)
            if WANT_DRESIDUAL:
                tl.store(dresidual_ptr + start + offset, grad.to(dresidual_ptr.dtype.element_ty), mask=mask)
            dx = grad * scale
        if HAS_DSUM:
            dx += dsum + dsum_sq * centred
        tl.store(dx_ptr + start + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
