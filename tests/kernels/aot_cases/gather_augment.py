"""Compile-only cases of `gather_augment`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dfkd_kernels.gather_augment.triton import BLOCK, gather_kernel

from . import AotCase


def cases() -> Iterator[AotCase]:
    """Every dtype and layout at the field's image sizes."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for channels_last in (True, False):
            for size in (32, 112):
                layout = "nhwc" if channels_last else "nchw"
                name = f"gather_augment_{str(dtype)[6:]}_{layout}_{size}"
                args = (torch.uint8, torch.int64, torch.int64, torch.bool, torch.float32, dtype, 50_000, 4)
                shape = {"HEIGHT": size, "WIDTH": size, "NUM_CHANNELS": 3}
                yield AotCase(name, gather_kernel, args, {**shape, "CHANNELS_LAST": channels_last, "BLOCK": BLOCK})


def corners() -> Iterator[AotCase]:
    """One image, a padding of 1 and of 0, one and four channels, sizes that nothing divides."""
    pointers = (torch.uint8, torch.int64, torch.int64, torch.bool, torch.float32, torch.bfloat16)
    for images, pad, size, channels in (
        (1, 1, 32, 3),
        (50_000, 0, 32, 3),
        (1, 0, 28, 1),
        (5, 16, 224, 3),
        (5, 1, 7, 4),
    ):
        for channels_last in (True, False):
            name = f"gather_augment_{images}_{pad}_{size}x{channels}_{channels_last:d}"
            shape = {"HEIGHT": size, "WIDTH": size, "NUM_CHANNELS": channels, "CHANNELS_LAST": channels_last}
            yield AotCase(name, gather_kernel, (*pointers, images, pad), {**shape, "BLOCK": BLOCK})
