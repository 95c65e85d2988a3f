"""Triton kernels of `bn_act_moments` and `batch_moments`: one pass over x forward, one elementwise pass backward.

Shapes: x is (N, C, *) with S positions per sample, dense. A tile is (ROWS, CHANNELS): in channels-last layout ROWS of
the N S rows of C values; in NC* layout ROWS positions of one sample's planes. Every program walks a run of tiles of
one block of channels, keeps its sums in registers and writes one row of `partials`; a second kernel adds the rows in a
fixed order. The number of programs depends on the shape alone, so the sums are the same bits on every run and GPU.
"""

import triton
import triton.language as tl

from .reference import NONE, RELU6

_NONE = tl.constexpr(NONE)
_RELU6 = tl.constexpr(RELU6)


@triton.jit
def _tile_of(
    tile, channel, channel_mask, num_rows, num_channels, num_positions, NHWC: tl.constexpr, ROWS: tl.constexpr
):
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
def _passes(value, ACT: tl.constexpr):
    """Where the activation's derivative is 1."""
    passes = value > 0.0
    if ACT == _RELU6:
        passes &= value < 6.0
    return passes


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
        start, offset, mask = _tile_of(tile, channel, channel_mask, num_rows, num_channels, num_positions, NHWC, ROWS)
        x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
        centred = tl.where(mask, x - shift, 0.0)
        total += centred
        total_sq += centred * centred
        if HAS_Y:
            y = centred * scale + bias
            if HAS_RESIDUAL:
                y += tl.load(residual_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
            if ACT != _NONE:
                y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
            if ACT == _RELU6:
                y = tl.minimum(y, 6.0, propagate_nan=tl.PropagateNan.ALL)
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
    y_ptr,  # like x, read only if MASK_BY_Y
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
    NHWC: tl.constexpr,
    HAS_DY: tl.constexpr,
    HAS_DSUM: tl.constexpr,
    MASK_BY_Y: tl.constexpr,
    WANT_DRESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < num_channels
    mask_by_x: tl.constexpr = (ACT != _NONE) and HAS_DY and not MASK_BY_Y
    shift = tl.load(shift_ptr + channel, mask=channel_mask, other=0.0)[None, :]
    if HAS_DY:
        scale = tl.load(scale_ptr + channel, mask=channel_mask, other=0.0)[None, :]
    if mask_by_x:
        bias = tl.load(bias_ptr + channel, mask=channel_mask, other=0.0)[None, :]
    if HAS_DSUM:
        dsum = tl.load(dsum_ptr + channel, mask=channel_mask, other=0.0)[None, :]
        dsum_sq = 2.0 * tl.load(dsum_sq_ptr + channel, mask=channel_mask, other=0.0)[None, :]
    first = tl.program_id(0) * tiles_per_program
    for step in tl.range(0, tl.minimum(tiles_per_program, num_tiles - first), num_stages=STAGES):
        tile = first + step
        start, offset, mask = _tile_of(tile, channel, channel_mask, num_rows, num_channels, num_positions, NHWC, ROWS)
        dx = tl.zeros([ROWS, CHANNELS], tl.float32)
        if HAS_DSUM or mask_by_x:
            centred = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32) - shift
        if HAS_DY:
            grad = tl.load(dy_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
            if mask_by_x:
                grad = tl.where(_passes(centred * scale + bias, ACT), grad, 0.0)
            if MASK_BY_Y:
                y = tl.load(y_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
                grad = tl.where(_passes(y, ACT), grad, 0.0)
            if WANT_DRESIDUAL:
                tl.store(dresidual_ptr + start + offset, grad.to(dresidual_ptr.dtype.element_ty), mask=mask)
            dx = grad * scale
        if HAS_DSUM:
            dx += dsum + dsum_sq * centred
        tl.store(dx_ptr + start + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
