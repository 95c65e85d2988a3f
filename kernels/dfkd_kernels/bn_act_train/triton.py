"""Triton kernels of `bn_act_train`: three forward and, with `sum_partials_kernel`, three backward.

Shapes, tiles and splits are those of `bn_act_moments`: x is (N, C, *) with S positions per sample, dense; a program
walks a run of tiles of one block of channels and writes one row of partial sums; a second kernel adds the rows in a
fixed order. The activation is v above zero and slope * v elsewhere.
"""

import triton
import triton.language as tl

from ..bn_act_moments.triton import tile_of


@triton.jit
def _vector(pointer, channel, mask, HAS: tl.constexpr, missing: tl.constexpr):
    """One value a channel, (1, CHANNELS)."""
    if HAS:
        return tl.load(pointer + channel, mask=mask, other=0.0)[None, :]
    return tl.full([1, channel.shape[0]], missing, tl.float32)


@triton.jit
def _affine(
    stats_ptr, weight_ptr, bias_ptr, channel, mask, num_channels, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr
):
    """Mean, 1 / standard deviation, scale and bias of each channel, (1, CHANNELS): y = (x - mean) * scale + bias."""
    mean = _vector(stats_ptr, channel, mask, True, 0.0)
    rstd = _vector(stats_ptr + num_channels, channel, mask, True, 0.0)
    scale = rstd * _vector(weight_ptr, channel, mask, HAS_WEIGHT, 1.0)
    return mean, rstd, scale, _vector(bias_ptr, channel, mask, HAS_BIAS, 0.0)


@triton.jit
def moments_kernel(
    x_ptr,  # (N, C, S), either layout
    partials_ptr,  # (P, 3, C) float32: mean, sum of squares about it, count
    num_rows,
    num_channels,
    num_positions,
    num_tiles,
    tiles_per_program,
    NHWC: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    split = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < num_channels
    first = split * tiles_per_program
    # sums about the first tile's mean keep the digits that sums about zero lose
    start, offset, mask = tile_of(first, channel, channel_mask, num_rows, num_channels, num_positions, NHWC, ROWS)
    values = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
    shift = (tl.sum(values, 0) / tl.maximum(tl.sum(mask.to(tl.float32), 0), 1.0))[None, :]
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    total_sq = tl.zeros([ROWS, CHANNELS], tl.float32)
    count = tl.zeros([ROWS, CHANNELS], tl.float32)
    for step in tl.range(0, tl.minimum(tiles_per_program, num_tiles - first), num_stages=STAGES):
        tile = first + step
        start, offset, mask = tile_of(tile, channel, channel_mask, num_rows, num_channels, num_positions, NHWC, ROWS)
        x = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
        centred = tl.where(mask, x - shift, 0.0)
        total += centred
        total_sq += centred * centred
        count += mask.to(tl.float32)
    values_in = tl.maximum(tl.sum(count, 0), 1.0)
    delta = tl.sum(total, 0) / values_in
    row_ptr = partials_ptr + split.to(tl.int64) * 3 * num_channels + channel
    tl.store(row_ptr, tl.sum(shift, 0) + delta, mask=channel_mask)
    tl.store(row_ptr + num_channels, tl.sum(total_sq, 0) - delta * delta * values_in, mask=channel_mask)
    tl.store(row_ptr + 2 * num_channels, tl.sum(count, 0), mask=channel_mask)


@triton.jit
def stats_kernel(
    partials_ptr,  # (P, 3, C) float32
    stats_ptr,  # (3, C) float32: mean, 1 / sqrt(variance + eps), unbiased variance
    num_partials,
    num_channels,
    count,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    column_mask = column < num_channels
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in tl.range(0, num_partials, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < num_partials)[:, None] & column_mask[None, :]
        offset = row[:, None] * 3 * num_channels + column[None, :]
        mean = tl.load(partials_ptr + offset, mask=mask, other=0.0)
        total += mean * tl.load(partials_ptr + offset + 2 * num_channels, mask=mask, other=0.0)
    mean = tl.sum(total, 0) / count
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in tl.range(0, num_partials, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < num_partials)[:, None] & column_mask[None, :]
        offset = row[:, None] * 3 * num_channels + column[None, :]
        gap = tl.load(partials_ptr + offset, mask=mask, other=0.0) - mean[None, :]
        weight = tl.load(partials_ptr + offset + 2 * num_channels, mask=mask, other=0.0)
        squares += tl.load(partials_ptr + offset + num_channels, mask=mask, other=0.0) + gap * gap * weight
    square = tl.sum(squares, 0)
    var = tl.where(square < 0.0, 0.0, square) / count
    tl.store(stats_ptr + column, mean, mask=column_mask)
    tl.store(stats_ptr + num_channels + column, tl.rsqrt(var + eps), mask=column_mask)
    tl.store(stats_ptr + 2 * num_channels + column, var * (count / (count - 1.0)), mask=column_mask)


@triton.jit
def normalize_kernel(
    x_ptr,  # (N, C, S), either layout
    residual_ptr,  # like x, read only if HAS_RESIDUAL
    y_ptr,  # like x
    stats_ptr,  # (3, C) float32
    weight_ptr,  # (C,) float32, as bias
    bias_ptr,
    slope,
    num_rows,
    num_channels,
    num_positions,
    num_tiles,
    tiles_per_program,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_ACT: tl.constexpr,
    NHWC: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < num_channels
    mean, _, scale, bias = _affine(
        stats_ptr, weight_ptr, bias_ptr, channel, channel_mask, num_channels, HAS_WEIGHT, HAS_BIAS
    )
    first = tl.program_id(0) * tiles_per_program
    for step in tl.range(0, tl.minimum(tiles_per_program, num_tiles - first), num_stages=STAGES):
        tile = first + step
        start, offset, mask = tile_of(tile, channel, channel_mask, num_rows, num_channels, num_positions, NHWC, ROWS)
        y = (tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32) - mean) * scale + bias
        if HAS_RESIDUAL:
            y += tl.load(residual_ptr + start + offset, mask=mask, other=0.0).to(tl.float32)
        if HAS_ACT:  # an infinity is made finite first, or relu would make it NaN
            y = tl.where(y < 0.0, tl.maximum(y, -3.4028234663852886e38) * slope, y)
        tl.store(y_ptr + start + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gradient(dy_ptr, y_ptr, place, mask, d, scale, bias, slope, HAS_ACT: tl.constexpr, BY_Y: tl.constexpr):
    """The gradient behind the activation; the sign of what that read is y's, or is computed anew from d = x - mean."""
    grad = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_ACT:
        told = tl.load(y_ptr + place, mask=mask, other=0.0).to(tl.float32) if BY_Y else d * scale + bias
        grad = tl.where(told <= 0.0, grad * slope, grad)
    return grad


@triton.jit
def reduce_kernel(
    dy_ptr,  # like x
    x_ptr,  # (N, C, S), either layout
    y_ptr,  # like x, read only if BY_Y
    dresidual_ptr,  # like x, written only if WANT_DRESIDUAL
    partials_ptr,  # (P, 2, C) float32: the gradients of weight and bias
    stats_ptr,  # (3, C) float32
    weight_ptr,  # (C,) float32, as bias
    bias_ptr,
    slope,
    num_rows,
    num_channels,
    num_positions,
    num_tiles,
    tiles_per_program,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ACT: tl.constexpr,
    BY_Y: tl.constexpr,
    WANT_DRESIDUAL: tl.constexpr,
    NHWC: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    split = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < num_channels
    mean, rstd, scale, bias = _affine(
        stats_ptr, weight_ptr, bias_ptr, channel, channel_mask, num_channels, HAS_WEIGHT, HAS_BIAS
    )
    product = tl.zeros([ROWS, CHANNELS], tl.float32)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    first = split * tiles_per_program
    for step in tl.range(0, tl.minimum(tiles_per_program, num_tiles - first), num_stages=STAGES):
        tile = first + step
        start, offset, mask = tile_of(tile, channel, channel_mask, num_rows, num_channels, num_positions, NHWC, ROWS)
        d = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32) - mean
        grad = _gradient(dy_ptr, y_ptr, start + offset, mask, d, scale, bias, slope, HAS_ACT, BY_Y)
        if WANT_DRESIDUAL:
            tl.store(dresidual_ptr + start + offset, grad.to(dresidual_ptr.dtype.element_ty), mask=mask)
        total += grad  # zero outside the mask, where dy is
        product += grad * (d * rstd)
    row_ptr = partials_ptr + split.to(tl.int64) * 2 * num_channels + channel
    tl.store(row_ptr, tl.sum(product, 0), mask=channel_mask)
    tl.store(row_ptr + num_channels, tl.sum(total, 0), mask=channel_mask)


@triton.jit
def gradient_kernel(
    dy_ptr,  # like x; what the residual got, if HAS_ACT is false and there was one
    x_ptr,  # (N, C, S), either layout
    y_ptr,  # like x, read only if BY_Y
    dx_ptr,  # like x
    stats_ptr,  # (3, C) float32
    dparams_ptr,  # (2, C) float32
    weight_ptr,  # (C,) float32, as bias
    bias_ptr,
    slope,
    count,
    num_rows,
    num_channels,
    num_positions,
    num_tiles,
    tiles_per_program,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ACT: tl.constexpr,
    BY_Y: tl.constexpr,
    NHWC: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < num_channels
    mean, rstd, scale, bias = _affine(
        stats_ptr, weight_ptr, bias_ptr, channel, channel_mask, num_channels, HAS_WEIGHT, HAS_BIAS
    )
    # what all values of the channel do to one through the mean and the variance
    at_mean = -scale * _vector(dparams_ptr + num_channels, channel, channel_mask, True, 0.0) / count
    per_d = -scale * rstd * _vector(dparams_ptr, channel, channel_mask, True, 0.0) / count
    first = tl.program_id(0) * tiles_per_program
    for step in tl.range(0, tl.minimum(tiles_per_program, num_tiles - first), num_stages=STAGES):
        tile = first + step
        start, offset, mask = tile_of(tile, channel, channel_mask, num_rows, num_channels, num_positions, NHWC, ROWS)
        d = tl.load(x_ptr + start + offset, mask=mask, other=0.0).to(tl.float32) - mean
        grad = _gradient(dy_ptr, y_ptr, start + offset, mask, d, scale, bias, slope, HAS_ACT, BY_Y)
        dx = grad * scale + (at_mean + d * per_d)
        tl.store(dx_ptr + start + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
