"""Compile-only cases of `cam_margin_loss`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dfkd_kernels.cam_margin.triton import backward_kernel, forward_kernel, tile

from . import AotCase


def cases() -> Iterator[AotCase]:
    """Every dtype in both layouts, for the maps of a CIFAR and of an ImageNet network."""
    float32 = torch.float32
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for channels, pixels in ((512, 16), (2048, 49)):
            tile_channels, tile_pixels = tile(channels, pixels)
            options = {"CHANNELS": tile_channels, "PIXELS": tile_pixels}
            for layout, strides in (("nchw", (pixels, 1)), ("nhwc", (1, channels))):
                name = f"{str(dtype)[6:]}_{layout}_{channels}x{pixels}"
                sizes = (1000, channels, pixels, *strides)
                args: tuple[Any, ...] = (dtype, dtype, torch.int64, float32, float32, torch.bool, *sizes, 1.0)
                yield AotCase(f"cam_margin_forward_{name}", forward_kernel, args, {"HAS_MAP": True, **options})
                args = (float32, torch.bool, dtype, torch.int64, dtype, *sizes)
                yield AotCase(f"cam_margin_backward_{name}", backward_kernel, args, options)


def corners() -> Iterator[AotCase]:
    """One class, channel or pixel, in both layouts; with a map to compare with, and without."""
    float32, bfloat16 = torch.float32, torch.bfloat16
    for sizes in ((1, 1, 1, 1, 1), (10, 64, 1, 1, 1), (10, 512, 16, 1, 512), (10, 512, 16, 16, 1), (1, 512, 16, 16, 1)):
        tile_channels, tile_pixels = tile(*sizes[1:3])
        options, name = {"CHANNELS": tile_channels, "PIXELS": tile_pixels}, "x".join(map(str, sizes))
        for has_map in (True, False):
            args: tuple[Any, ...] = (bfloat16, bfloat16, torch.int64, float32, float32, torch.bool, *sizes, 1.0)
            yield AotCase(
                f"cam_margin_forward_{has_map:d}_{name}", forward_kernel, args, {"HAS_MAP": has_map, **options}
            )
        args = (float32, torch.bool, bfloat16, torch.int64, bfloat16, *sizes)
        yield AotCase(f"cam_margin_backward_{name}", backward_kernel, args, options)
