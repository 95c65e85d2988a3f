"""Compile-only cases of `bn_act_moments` and `batch_moments`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from dfkd_kernels.bn_act_moments.launch import SUM_PARTIALS, Plan, plan
from dfkd_kernels.bn_act_moments.reference import ACTIVATIONS, NONE, RELU, RELU6
from dfkd_kernels.bn_act_moments.triton import backward_kernel, forward_kernel, sum_partials_kernel

from . import AotCase

SLOPE = 0.1
AOT_SHAPES = ((200, 64, 56, 56), (200, 2048, 7, 7), (100, 19, 7, 5))
"""a wide layer, a deep one with odd maps, and one where nothing is a multiple of anything"""


def cases() -> Iterator[AotCase]:
    """Every dtype and layout, at three shapes; with and without residual, and the bare moments."""
    float32 = torch.float32
    yield AotCase("sum_partials", sum_partials_kernel, (float32, float32, 208, 128, 1.0), SUM_PARTIALS)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in AOT_SHAPES:
            for nhwc in (True, False):
                name = f"{str(dtype)[6:]}_{'nhwc' if nhwc else 'nchw'}_{'x'.join(map(str, shape))}"
                yield from _aot_forward(name, dtype, torch.Size(shape), nhwc)
                yield from _aot_backward(name, dtype, plan(torch.Size(shape), nhwc, "backward"))
    yield from _aot_activations()


def _aot_forward(name: str, dtype: torch.dtype, shape: torch.Size, nhwc: bool) -> Iterator[AotCase]:
    pointers = (dtype, dtype, dtype, *[torch.float32] * 4)
    for variant, act, has_y, residual in (
        ("bn_relu", RELU, True, False),
        ("bn_add_relu6", RELU6, True, True),
        ("moments", NONE, False, False),
    ):
        cut = plan(shape, nhwc, "forward", residual=residual)
        options = {"ACT": act, "SLOPE": SLOPE, "HAS_Y": has_y, "HAS_RESIDUAL": residual, **cut.options}
        yield AotCase(f"{variant}_forward_{name}", forward_kernel, (*pointers, *cut.sizes), options)


def _aot_backward(name: str, dtype: torch.dtype, cut: Plan) -> Iterator[AotCase]:
    pointers = (*[dtype] * 5, *[torch.float32] * 5)
    for variant, act, has_dy, residual in (
        ("bn_relu", RELU, True, False),
        ("bn_add_relu6", RELU6, True, True),
        ("moments", NONE, False, False),
    ):
        flags = {"HAS_DY": has_dy, "HAS_DSUM": True, "HAS_KEPT": residual, "WANT_DRESIDUAL": residual}
        options = {"ACT": act, "SLOPE": SLOPE, **flags, **cut.options}
        yield AotCase(f"{variant}_backward_{name}", backward_kernel, (*pointers, *cut.sizes), options)


def _aot_activations() -> Iterator[AotCase]:
    """The activations that are computed, not clamped, once each; one of them behind a residual."""
    shape, dtype = torch.Size(AOT_SHAPES[0]), torch.bfloat16
    names = [name for name in ACTIVATIONS if name not in (None, "relu", "relu6")]
    for name in names:
        residual = name == "gelu_tanh"
        act = {"ACT": ACTIVATIONS[name], "SLOPE": SLOPE}
        chain = f"bn_{'add_' if residual else ''}{name}"
        cut = plan(shape, True, "forward", residual=residual)
        options = {**act, "HAS_Y": True, "HAS_RESIDUAL": residual, **cut.options}
        pointers = (*[dtype] * 3, *[torch.float32] * 4)
        yield AotCase(f"{chain}_forward_bfloat16_nhwc", forward_kernel, (*pointers, *cut.sizes), options)
        cut = plan(shape, True, "backward")
        flags = {"HAS_DY": True, "HAS_DSUM": True, "HAS_KEPT": residual, "WANT_DRESIDUAL": residual}
        pointers = (*[dtype] * 5, *[torch.float32] * 5)
        options = {**act, **flags, **cut.options}
        yield AotCase(f"{chain}_backward_bfloat16_nhwc", backward_kernel, (*pointers, *cut.sizes), options)


CORNER_SHAPES = ((1, 1), (6, 17), (1, 1, 1, 1), (1, 64, 1, 1), (512, 1, 1, 1), (1, 16, 4, 4), (2, 2048, 1, 1))
"""no positions, one sample, one channel, one tile: where an integer that a launch passes is 1"""


def corners() -> Iterator[AotCase]:
    """Integers of 1, which become constants of the kernel, and the flags that `cases` leaves out."""
    float32 = torch.float32
    for partials, columns in ((1, 2), (1, 1), (416, 1)):
        args = (float32, float32, partials, columns, 1.0)
        yield AotCase(f"sum_partials_{partials}_{columns}", sum_partials_kernel, args, SUM_PARTIALS)
    for dtype, shape, nhwc in itertools.product((torch.bfloat16, float32), CORNER_SHAPES, (True, False)):
        name = f"{str(dtype)[6:]}_{'nhwc' if nhwc else 'nchw'}_{'x'.join(map(str, shape))}"
        for act, has_y, residual in ((RELU6, True, True), (NONE, True, False), (NONE, False, False)):
            cut = plan(torch.Size(shape), nhwc, "forward", residual=residual)
            options = {"ACT": act, "SLOPE": SLOPE, "HAS_Y": has_y, "HAS_RESIDUAL": residual, **cut.options}
            pointers = (dtype, dtype, dtype, *[float32] * 4)
            yield AotCase(
                f"forward_{act}{has_y:d}{residual:d}_{name}", forward_kernel, (*pointers, *cut.sizes), options
            )
        cut = plan(torch.Size(shape), nhwc, "backward")
        for act, dy, dsum, by_y in ((RELU, True, True, True), (RELU, True, False, False), (NONE, False, True, False)):
            flags = {"HAS_DY": dy, "HAS_DSUM": dsum, "HAS_KEPT": by_y, "WANT_DRESIDUAL": by_y}
            pointers = (*[dtype] * 5, *[float32] * 5)
            case = f"backward_{act}{dy:d}{dsum:d}{by_y:d}_{name}"
            yield AotCase(
                case, backward_kernel, (*pointers, *cut.sizes), {"ACT": act, "SLOPE": SLOPE, **flags, **cut.options}
            )
