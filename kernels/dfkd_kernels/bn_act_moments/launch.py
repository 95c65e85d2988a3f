"""Launches of the Triton kernels of `bn_act_moments` and `batch_moments`; signatures and meanings: NATIVE.md."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..layout import is_channels_last
from .reference import NONE
from .triton import backward_kernel, forward_kernel, sum_partials_kernel

MAX_ROWS = 512
"""of a tile in NC* layout: longer runs gain nothing, and waste more lanes on the last tile of a plane"""

SUM_PARTIALS: dict[str, int] = {"ROWS": 64, "COLUMNS": 32, "STAGES": 3, "num_warps": 4}
"""the second stage's tile of partial sums, with two tiles on their way while one is added"""


class Tiling(NamedTuple):
    """One row of the table."""

    elements: int
    """of a tile, a power of two"""
    warps: int
    stages: int
    """tiles that are loaded ahead, plus one"""
    programs: int
    """aimed at per launch"""
    registers: int | None = None
    """the most that a thread may have in the forward form with a residual; None: as many as the compiler takes"""


TILINGS = {
    # (direction, layout)
    ("forward", "channels-last"): Tiling(elements=2048, warps=8, stages=3, programs=416, registers=64),
    ("forward", "contiguous"): Tiling(elements=2048, warps=8, stages=3, programs=416),
    ("backward", "channels-last"): Tiling(elements=1024, warps=4, stages=1, programs=8192),
    ("backward", "contiguous"): Tiling(elements=1024, warps=4, stages=1, programs=8192),
}
"""How launches cut a tensor up: one table for all GPUs, on which the sums' last bits depend.

The values are computed: a tile is one or two 16-byte loads a thread. Forward, 64 registers let four programs of 8 warps
share a multiprocessor, 416 programs are then one wave on 108 of them and on 132, and three stages keep two tiles in
flight. Left to itself, the compiler takes 73 to 76 registers on sm_80 with a residual in half precision, channels-last,
which three programs share; held to 64 it spills nothing. The contiguous form, which takes up to 106, would. Nothing is
reduced backward: more, shorter programs even out the tail.

Measured on: nothing yet (on a GPU, the checkout's `python bench/kernels/tune.py`).
"""


class Plan(NamedTuple):
    """How a launch cuts a tensor up; a function of its shape and layout alone."""

    sizes: tuple[int, int, int, int, int]
    """num_rows (N S), num_channels, num_positions (S), num_tiles, tiles_per_program"""
    grid: tuple[int, int]
    """programs along the tiles, blocks of channels"""
    options: dict[str, Any]


def plan(shape: torch.Size, nhwc: bool, direction: str, *, residual: bool = False) -> Plan:
    """Cut (N, C, *) into tiles and share them out, by the table's row for "forward" or "backward"."""
    tiling = TILINGS[direction, "channels-last" if nhwc else "contiguous"]
    samples, channels = shape[:2]
    positions = shape[2:].numel()
    if nhwc:
        block = _channel_block(channels)
        rows = min(tiling.elements // block, triton.next_power_of_2(samples * positions))
        tiles = triton.cdiv(samples * positions, rows)
    else:
        rows = min(MAX_ROWS, triton.next_power_of_2(positions))
        block = min(tiling.elements // rows, triton.next_power_of_2(channels))
        tiles = samples * triton.cdiv(positions, rows)
    blocks = triton.cdiv(channels, block)
    per_program = triton.cdiv(tiles, max(1, tiling.programs // blocks))
    options = {"NHWC": nhwc, "ROWS": rows, "CHANNELS": block, "STAGES": tiling.stages, "num_warps": tiling.warps}
    if residual and tiling.registers is not None:
        options["maxnreg"] = tiling.registers
    sizes = (samples * positions, channels, positions, tiles, per_program)
    return Plan(sizes, (triton.cdiv(tiles, per_program), blocks), options)


def _channel_block(channels: int) -> int:
    """Of 128, 64 and 32 the one that pads `channels` least, the largest of equals: row segments of 64 bytes or more."""
    if channels <= 16:
        return triton.next_power_of_2(channels)
    return min((128, 64, 32), key=lambda block: (triton.cdiv(channels, block) * block, -block))


def forward(
    x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, act: int, slope: float
) -> tuple[Tensor, Tensor]:
    """(y, stats)"""
    y = torch.empty_like(x)
    return y, _sum_partials(x, *_pass(x, shift, scale, bias, residual, y, act, slope))


def plain_forward(
    x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, act: int, slope: float
) -> Tensor:
    """y alone: the pass over x that gives the moments' parts, and none that adds them up"""
    y = torch.empty_like(x)
    _pass(x, shift, scale, bias, residual, y, act, slope)
    return y


def batch_forward(x: Tensor, shift: Tensor) -> Tensor:
    """stats"""
    return _sum_partials(x, *_pass(x, shift, shift, shift, None, None, NONE))


def _pass(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    y: Tensor | None,
    act: int,
    slope: float = 0.0,
) -> tuple[Tensor, Plan]:
    """Fills y; returns the moments' sums by program, and how x was cut up."""
    cut = plan(x.shape, is_channels_last(x), "forward", residual=residual is not None)
    splits, columns = cut.grid[0], 2 * x.shape[1]
    partials = torch.empty((splits, columns), dtype=torch.float32, device=x.device)
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
        SLOPE=slope,
        HAS_Y=y is not None,
        HAS_RESIDUAL=residual is not None,
        **cut.options,
    )
    return partials, cut


def _sum_partials(x: Tensor, partials: Tensor, cut: Plan) -> Tensor:
    """stats"""
    splits, columns = partials.shape
    stats = torch.empty(columns + 1, dtype=torch.float32, device=x.device)
    sum_partials_kernel[(triton.cdiv(columns, SUM_PARTIALS["COLUMNS"]),)](
        partials, stats, splits, columns, float(cut.sizes[0]), **SUM_PARTIALS
    )
    return stats


def backward(
    dy: Tensor | None,
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    bias: Tensor,
    kept: Tensor | None,
    dsum: Tensor | None,
    dsum_sq: Tensor | None,
    act: int,
    slope: float,
    want_dresidual: bool,
) -> tuple[Tensor, Tensor]:
    """(dx, dresidual); without `dy`, of the sums alone."""
    dresidual = torch.empty_like(x) if want_dresidual else x.new_empty(0)
    has_dsum = dsum is not None or dsum_sq is not None
    if has_dsum:  # one alone is rare: autograd hands over both as soon as a variance is used
        dsum = torch.zeros_like(shift) if dsum is None else dsum
        dsum_sq = torch.zeros_like(shift) if dsum_sq is None else dsum_sq
    cut = plan(x.shape, is_channels_last(x), "backward")
    dx = torch.empty_like(x)
    backward_kernel[cut.grid](
        x if dy is None else dy,
        x,
        x if kept is None else kept,
        dx,
        dresidual,
        shift,
        scale,
        bias,
        dsum if has_dsum else shift,
        dsum_sq if has_dsum else shift,
        *cut.sizes,
        ACT=act,
        SLOPE=slope,
        HAS_DY=dy is not None,
        HAS_DSUM=has_dsum,
        HAS_KEPT=kept is not None,
        WANT_DRESIDUAL=dresidual.numel() > 0,
        **cut.options,
    )
    return dx, dresidual


def batch_backward(x: Tensor, shift: Tensor, dsum: Tensor | None, dsum_sq: Tensor | None) -> Tensor:
    """dx"""
    return backward(None, x, shift, shift, shift, None, dsum, dsum_sq, NONE, 0.0, False)[0]
