"""Compile-only cases of `bn_act_train`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from dfkd_kernels.bn_act_moments.launch import plan
from dfkd_kernels.bn_act_train.launch import JOIN_PARTIALS
from dfkd_kernels.bn_act_train.triton import (
    gradient_kernel,
    moments_kernel,
    normalize_kernel,
    reduce_kernel,
    stats_kernel,
)

from . import AotCase
from .bn_act_moments import CORNER_SHAPES

AOT_SHAPES = ((128, 64, 56, 56), (100, 19, 7, 5))
"""a wide layer, and one where nothing is a multiple of anything"""


def cases() -> Iterator[AotCase]:
    """Every dtype and layout, at two shapes; with and without residual."""
    float32 = torch.float32
    yield AotCase("bn_train_stats", stats_kernel, (float32, float32, 208, 128, 2.0, 1e-5), JOIN_PARTIALS)
    for dtype, shape, nhwc in itertools.product(
        (torch.float32, torch.float16, torch.bfloat16), AOT_SHAPES, (True, False)
    ):
        name = f"{str(dtype)[6:]}_{'nhwc' if nhwc else 'nchw'}_{'x'.join(map(str, shape))}"
        yield from _passes(name, dtype, torch.Size(shape), nhwc)


def _passes(name: str, dtype: torch.dtype, shape: torch.Size, nhwc: bool, affine: bool = True) -> Iterator[AotCase]:
    reading, writing = (plan(shape, nhwc, direction) for direction in ("forward", "backward"))
    flags = {"HAS_WEIGHT": affine, "HAS_BIAS": affine}
    vectors = [torch.float32] * 3
    yield AotCase(f"bn_train_moments_{name}", moments_kernel, (dtype, torch.float32, *reading.sizes), reading.options)
    for variant, residual in (("act", False), ("add_act", True)):
        forward = {**flags, "HAS_RESIDUAL": residual, "HAS_ACT": True, **writing.options}
        args = (dtype, dtype, dtype, *vectors, 0.2, *writing.sizes)
        yield AotCase(f"bn_train_{variant}_forward_{name}", normalize_kernel, args, forward)
        told = {**flags, "HAS_ACT": True, "BY_Y": residual, "WANT_DRESIDUAL": residual, **reading.options}
        args = (dtype, dtype, dtype, dtype, torch.float32, *vectors, 0.2, *reading.sizes)
        yield AotCase(f"bn_train_{variant}_reduce_{name}", reduce_kernel, args, told)
        behind = {**flags, "HAS_ACT": not residual, "BY_Y": False, **writing.options}
        args = (dtype, dtype, dtype, dtype, *vectors[:2], *vectors[1:], 0.2, 2.0, *writing.sizes)
        yield AotCase(f"bn_train_{variant}_backward_{name}", gradient_kernel, args, behind)


def corners() -> Iterator[AotCase]:
    """Integers of 1, which become constants of the kernel, and layers without weight and bias."""
    float32 = torch.float32
    for partials, channels in ((1, 2), (1, 1), (416, 1)):
        args = (float32, float32, partials, channels, 2.0, 1e-5)
        yield AotCase(f"bn_train_stats_{partials}_{channels}", stats_kernel, args, JOIN_PARTIALS)
    for dtype, shape, nhwc in itertools.product((torch.bfloat16, float32), CORNER_SHAPES, (True, False)):
        name = f"corner_{str(dtype)[6:]}_{'nhwc' if nhwc else 'nchw'}_{'x'.join(map(str, shape))}"
        yield from _passes(name, dtype, torch.Size(shape), nhwc, affine=False)
