"""Triton kernel of `gather_augment`: one read of the pool's bytes, one write of the batch."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def gather_kernel(
    pool_ptr,  # (P, H, W, C) uint8; on the device, or pinned host memory
    indices_ptr,  # (B,) int64
    shifts_ptr,  # (B, 2) int64, (dy, dx)
    flips_ptr,  # (B,) bool
    table_ptr,  # (256, C) float32
    out_ptr,  # (B, C, H, W), contiguous or channels-last
    num_images,
    pad,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    size: tl.constexpr = HEIGHT * WIDTH * NUM_CHANNELS
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # in the order of the output's memory
    if CHANNELS_LAST:
        channel = place % NUM_CHANNELS
        x = place // NUM_CHANNELS % WIDTH
        y = place // (NUM_CHANNELS * WIDTH)
    else:
        x = place % WIDTH
        y = place // WIDTH % HEIGHT
        channel = place // (WIDTH * HEIGHT)
    index = tl.load(indices_ptr + sample)
    dy = tl.minimum(tl.maximum(tl.load(shifts_ptr + 2 * sample), -pad), pad).to(tl.int32)
    dx = tl.minimum(tl.maximum(tl.load(shifts_ptr + 2 * sample + 1), -pad), pad).to(tl.int32)
    flip = tl.load(flips_ptr + sample) != 0
    row = y + dy
    col = tl.where(flip, WIDTH - 1 - x, x) + dx
    inside = (row >= 0) & (row < HEIGHT) & (col >= 0) & (col < WIDTH) & (index >= 0) & (index < num_images)
    source = index * size + (row * WIDTH + col) * NUM_CHANNELS + channel
    value = tl.load(pool_ptr + source, mask=inside & (place < size), other=0).to(tl.int32)
    result = tl.load(table_ptr + value * NUM_CHANNELS + channel, mask=place < size, other=0.0)
    tl.store(out_ptr + sample * size + place, result.to(out_ptr.dtype.element_ty), mask=place < size)


def gather_augment(
    pool: Tensor, indices: Tensor, shifts: Tensor, flips: Tensor, table: Tensor, pad: int, out: Tensor
) -> None:
    """Fill `out` (B, C, H, W), contiguous or channels-last."""
    num_images, height, width, channels = pool.shape
    gather_kernel[(len(indices), triton.cdiv(height * width * channels, BLOCK))](
        pool,
        indices,
        shifts,
        flips,
        table,
        out,
        num_images,
        pad,
        HEIGHT=height,
        WIDTH=width,
        NUM_CHANNELS=channels,
        CHANNELS_LAST=not out.is_contiguous(),
        BLOCK=BLOCK,
    )
