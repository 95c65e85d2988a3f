"""Choose the stream that serves a pool; and the reference stream, plain torch, which the others are tested against."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

import dfkd_kernels
from dfkd_fast.augment import CropFlip, shift_flip
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.pool.storage import Storage
from dfkd_fast.pool.stream import AugmentSpec, DirectStream, Stream
from dfkd_fast.pool.stream_dali import DaliStream
from dfkd_fast.pool.stream_kernel import StagedStream, kernel_stream

StreamChoice = Literal["auto", "kernel", "dali", "torch"]


def make_stream(
    choice: StreamChoice, storage: Storage, view: AugmentSpec, runtime: Runtime, *, shape: tuple[int, ...], depth: int
) -> Stream:
    """A stream of batches of `shape` (B, H, W, C), of which it may prepare `depth` ahead.

    `auto` is `kernel`: where the device can address the images (its own memory, pinned memory, anything on a CPU) it
    reads them in place; a GPU gets files through a double buffer.
    """
    if choice == "torch":
        return torch_stream(storage, view, runtime)
    if choice == "dali":
        return DaliStream(storage, view, runtime, shape=shape, depth=depth)
    if runtime.device.type == "cuda" and (storage.kind == "mmap" or (storage.kind == "pinned" and not _reads_pinned())):
        return StagedStream(storage, view, runtime, shape=shape, depth=depth)
    return kernel_stream(storage, view, runtime)


def _reads_pinned() -> bool:
    """Whether a fused kernel serves the GPU: it reads pinned host memory, plain torch does not."""
    rows = dfkd_kernels.backends()
    return any(row.op == "gather_augment" and row.active and row.backend != "reference" for row in rows)


def torch_stream(storage: Storage, view: AugmentSpec, runtime: Runtime) -> DirectStream:
    """Gather, shift and flip bytes, then look each one up in the table of its normalised values."""
    table = normalized_values(view, torch.float64 if runtime.compute_dtype == torch.float64 else torch.float32).to(
        runtime.device
    )

    def augment(images: Tensor, rows: Tensor, params: CropFlip) -> Tensor:
        pixels = images[rows.to(images.device)].to(runtime.device)
        moved = shift_flip(pixels.permute(0, 3, 1, 2), params).long()
        channels = torch.arange(moved.shape[1], device=runtime.device).view(1, -1, 1, 1)
        return table[moved, channels].to(runtime.compute_dtype, memory_format=runtime.memory_format)

    return DirectStream(storage, augment)


def normalized_values(view: AugmentSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    """(256, C): (v / 255 - mean) / std of each byte v, computed in float64 and rounded once."""
    values = torch.arange(256, dtype=torch.float64)[:, None] / 255
    mean, std = (torch.tensor(numbers, dtype=torch.float64) for numbers in (view.info.mean, view.info.std))
    return ((values - mean) / std).to(dtype)
