"""Launches of the Triton kernels of `bn_act_moments` and `batch_moments`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .layout import is_channels_last
from .reference import NONE
from .triton import backward_kernel, forward_kernel, sum_partials_kernel

TILE = 4096
WARPS = 8
FORWARD_PROGRAMS = 512
"""per layer: a few per multiprocessor of a large GPU, so that `partials` stays under 3 % of x on layers that matter"""
BACKWARD_PROGRAMS = 4096
"""nothing is reduced there, so more and shorter programs even out the tail"""


class Plan(NamedTuple):
    """How a launch cuts a tensor up; a function of its shape, its layout and the number of programs aimed at."""

    nhwc: bool
    sizes: tuple[int, int, int, int, int]
    """num_rows (N S), num_channels, num_positions (S), num_tiles, tiles_per_program"""
    grid: tuple[int, int]
    rows: int
    channels: int


def plan(shape: torch.Size, nhwc: bool, programs: int) -> Plan:
    """Cut (N, C, *) into tiles and share them out over about `programs` programs."""
    samples, channels = shape[:2]
    positions = shape[2:].numel()
    if nhwc:
        tile_channels = _channel_block(channels)
        tile_rows = min(TILE // tile_channels, triton.next_power_of_2(samples * positions))
        tiles = triton.cdiv(samples * positions, tile_rows)
    else:
        tile_rows = min(512, triton.next_power_of_2(positions))
        tile_channels = min(TILE // tile_rows, triton.next_power_of_2(channels))
        tiles = samples * triton.cdiv(positions, tile_rows)
    blocks = triton.cdiv(channels, tile_channels)
    per_program = triton.cdiv(tiles, max(1, programs // blocks))
    sizes = (samples * positions, channels, positions, tiles, per_program)
    return Plan(nhwc, sizes, (triton.cdiv(tiles, per_program), blocks), tile_rows, tile_channels)


def _channel_block(channels: int) -> int:
    """Of 128, 64 and 32 the one that pads `channels` least, the largest of equals: row segments of 64 bytes or more."""
    if channels <= 16:
        return triton.next_power_of_2(channels)
    return min((128, 64, 32), key=lambda block: (triton.cdiv(channels, block) * block, -block))


def forward(
    x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, act: int
) -> tuple[Tensor, Tensor]:
    """(y, stats), see NATIVE.md."""
    y = torch.empty_like(x)
    return y, _reduce(x, shift, scale, bias, residual, y, act)


def batch_forward(x: Tensor, shift: Tensor) -> Tensor:
    """stats, see NATIVE.md."""
    return _reduce(x, shift, shift, shift, None, None, NONE)


def _reduce(
    x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, y: Tensor | None, act: int
) -> Tensor:
    cut = plan(x.shape, is_channels_last(x), FORWARD_PROGRAMS)
    channels, splits = cut.sizes[1], cut.grid[0]
    partials = torch.empty((splits, 2 * channels), dtype=torch.float32, device=x.device)
    forward_kernel[cut.grid](
        x,
        x if residual is None else residual,
        x if y is None else y,
        partials,
        shift,
        scale,
        bias,
        *cut.sizes,
        ACT=act,
        NHWC=cut.nhwc,
        HAS_Y=y is not None,
        HAS_RESIDUAL=residual is not None,
        ROWS=cut.rows,
        CHANNELS=cut.channels,
        num_warps=WARPS,
    )
    stats = torch.empty(2 * channels + 1, dtype=torch.float32, device=x.device)
    columns = 2 * channels
    sum_partials_kernel[(triton.cdiv(columns, 32),)](
        partials, stats, splits, columns, float(x.numel() // channels), ROWS=64, COLUMNS=32, num_warps=4
    )
    return stats


def backward(
    dy: Tensor,
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    bias: Tensor,
    y: Tensor | None,
    dsum: Tensor | None,
    dsum_sq: Tensor | None,
    act: int,
    want_dresidual: bool,
) -> tuple[Tensor, Tensor]:
    """(dx, dresidual), see NATIVE.md."""
    dresidual = torch.empty_like(x) if want_dresidual else x.new_empty(0)
    return _scatter(dy, x, shift, scale, bias, y, dsum, dsum_sq, act, dresidual), dresidual


def batch_backward(x: Tensor, shift: Tensor, dsum: Tensor | None, dsum_sq: Tensor | None) -> Tensor:
    """dx, see NATIVE.md."""
    return _scatter(None, x, shift, shift, shift, None, dsum, dsum_sq, NONE, x.new_empty(0))


def _scatter(
    dy: Tensor | None,
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    bias: Tensor,
    y: Tensor | None,
    dsum: Tensor | None,
    dsum_sq: Tensor | None,
    act: int,
    dresidual: Tensor,
) -> Tensor:
    has_dsum = dsum is not None or dsum_sq is not None
    if has_dsum:  # one alone is rare: autograd hands over both as soon as a variance is used
        dsum = torch.zeros_like(shift) if dsum is None else dsum
        dsum_sq = torch.zeros_like(shift) if dsum_sq is None else dsum_sq
    cut = plan(x.shape, is_channels_last(x), BACKWARD_PROGRAMS)
    dx = torch.empty_like(x)
    backward_kernel[cut.grid](
        x if dy is None else dy,
        x,
        x if y is None else y,
        dx,
        dresidual,
        shift,
        scale,
        bias,
        dsum if has_dsum else shift,
        dsum_sq if has_dsum else shift,
        *cut.sizes,
        ACT=act,
        NHWC=cut.nhwc,
        HAS_DY=dy is not None,
        HAS_DSUM=has_dsum,
        MASK_BY_Y=y is not None,
        WANT_DRESIDUAL=dresidual.numel() > 0,
        ROWS=cut.rows,
        CHANNELS=cut.channels,
        num_warps=WARPS,
    )
    return dx
