"""Launches of the Triton kernels of `bn_act_moments` and `batch_moments`; signatures and meanings: NATIVE.md."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..registration import AotCase
from .layout import is_channels_last
from .reference import NONE, RELU, RELU6
from .tilings import TILINGS
from .triton import backward_kernel, forward_kernel, sum_partials_kernel

MAX_ROWS = 512
"""of a tile in NC* layout: longer runs gain nothing, and waste more lanes on the last tile of a plane"""


SUM_PARTIALS: dict[str, int] = {"ROWS": 64, "COLUMNS": 32, "STAGES": 3, "num_warps": 4}
"""the second stage's tile of partial sums, with two tiles on their way while one is added"""


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
    x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, act: int
) -> tuple[Tensor, Tensor]:
    """(y, stats)"""
    y = torch.empty_like(x)
    return y, _sum_partials(x, *_pass(x, shift, scale, bias, residual, y, act))


def plain_forward(x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, act: int) -> Tensor:
    """y alone: the pass over x that gives the moments' parts, and none that adds them up"""
    y = torch.empty_like(x)
    _pass(x, shift, scale, bias, residual, y, act)
    return y


def batch_forward(x: Tensor, shift: Tensor) -> Tensor:
    """stats"""
    return _sum_partials(x, *_pass(x, shift, shift, shift, None, None, NONE))


def _pass(
    x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, y: Tensor | None, act: int
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
    """(dx, dresidual)"""
    dresidual = torch.empty_like(x) if want_dresidual else x.new_empty(0)
    return _scatter(dy, x, shift, scale, bias, y, dsum, dsum_sq, act, dresidual), dresidual


def batch_backward(x: Tensor, shift: Tensor, dsum: Tensor | None, dsum_sq: Tensor | None) -> Tensor:
    """dx"""
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
    cut = plan(x.shape, is_channels_last(x), "backward")
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
        HAS_DY=dy is not None,
        HAS_DSUM=has_dsum,
        MASK_BY_Y=y is not None,
        WANT_DRESIDUAL=dresidual.numel() > 0,
        **cut.options,
    )
    return dx


AOT_SHAPES = ((200, 64, 56, 56), (200, 2048, 7, 7), (100, 19, 7, 5))
"""a wide layer, a deep one with odd maps, and one where nothing is a multiple of anything"""


def aot_cases() -> Iterator[AotCase]:
    """Every dtype and layout, at three shapes; with and without residual, and the bare moments."""
    float32 = torch.float32
    yield AotCase("sum_partials", sum_partials_kernel, (float32, float32, 208, 128, 1.0), SUM_PARTIALS)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in AOT_SHAPES:
            for nhwc in (True, False):
                name = f"{str(dtype)[6:]}_{'nhwc' if nhwc else 'nchw'}_{'x'.join(map(str, shape))}"
                yield from _aot_forward(name, dtype, torch.Size(shape), nhwc)
                yield from _aot_backward(name, dtype, plan(torch.Size(shape), nhwc, "backward"))


def _aot_forward(name: str, dtype: torch.dtype, shape: torch.Size, nhwc: bool) -> Iterator[AotCase]:
    pointers = (dtype, dtype, dtype, *[torch.float32] * 4)
    for variant, act, has_y, residual in (
        ("bn_relu", RELU, True, False),
        ("bn_add_relu6", RELU6, True, True),
        ("moments", NONE, False, False),
    ):
        cut = plan(shape, nhwc, "forward", residual=residual)
        options = {"ACT": act, "HAS_Y": has_y, "HAS_RESIDUAL": residual, **cut.options}
        yield AotCase(f"{variant}_forward_{name}", forward_kernel, (*pointers, *cut.sizes), options)


def _aot_backward(name: str, dtype: torch.dtype, cut: Plan) -> Iterator[AotCase]:
    pointers = (*[dtype] * 5, *[torch.float32] * 5)
    for variant, act, has_dy, residual in (
        ("bn_relu", RELU, True, False),
        ("bn_add_relu6", RELU6, True, True),
        ("moments", NONE, False, False),
    ):
        flags = {"HAS_DY": has_dy, "HAS_DSUM": True, "MASK_BY_Y": residual, "WANT_DRESIDUAL": residual}
        options = {"ACT": act, **flags, **cut.options}
        yield AotCase(f"{variant}_backward_{name}", backward_kernel, (*pointers, *cut.sizes), options)


CORNER_SHAPES = ((1, 1), (6, 17), (1, 1, 1, 1), (1, 64, 1, 1), (512, 1, 1, 1), (1, 16, 4, 4), (2, 2048, 1, 1))
"""no positions, one sample, one channel, one tile: where an integer that a launch passes is 1"""


def aot_corners() -> Iterator[AotCase]:
    """Integers of 1, which become constants of the kernel, and the flags that `aot_cases` leaves out."""
    float32 = torch.float32
    for partials, columns in ((1, 2), (1, 1), (416, 1)):
        args = (float32, float32, partials, columns, 1.0)
        yield AotCase(f"sum_partials_{partials}_{columns}", sum_partials_kernel, args, SUM_PARTIALS)
    for dtype, shape, nhwc in itertools.product((torch.bfloat16, float32), CORNER_SHAPES, (True, False)):
        name = f"{str(dtype)[6:]}_{'nhwc' if nhwc else 'nchw'}_{'x'.join(map(str, shape))}"
        for act, has_y, residual in ((RELU6, True, True), (NONE, True, False), (NONE, False, False)):
            cut = plan(torch.Size(shape), nhwc, "forward", residual=residual)
            options = {"ACT": act, "HAS_Y": has_y, "HAS_RESIDUAL": residual, **cut.options}
            pointers = (dtype, dtype, dtype, *[float32] * 4)
            yield AotCase(
                f"forward_{act}{has_y:d}{residual:d}_{name}", forward_kernel, (*pointers, *cut.sizes), options
            )
        cut = plan(torch.Size(shape), nhwc, "backward")
        for act, dy, dsum, by_y in ((RELU, True, True, True), (RELU, True, False, False), (NONE, False, True, False)):
            flags = {"HAS_DY": dy, "HAS_DSUM": dsum, "MASK_BY_Y": by_y, "WANT_DRESIDUAL": by_y}
            pointers = (*[dtype] * 5, *[float32] * 5)
            case = f"backward_{act}{dy:d}{dsum:d}{by_y:d}_{name}"
            yield AotCase(case, backward_kernel, (*pointers, *cut.sizes), {"ACT": act, **flags, **cut.options})
