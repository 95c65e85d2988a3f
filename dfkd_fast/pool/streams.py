"""Choose the stream that serves a pool."""

from __future__ import annotations

from typing import Literal

import dfkd_kernels
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.pool.storage import Storage
from dfkd_fast.pool.stream import AugmentSpec, Stream
from dfkd_fast.pool.stream_dali import DaliStream
from dfkd_fast.pool.stream_kernel import StagedStream, kernel_stream
from dfkd_fast.pool.stream_torch import torch_stream

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
