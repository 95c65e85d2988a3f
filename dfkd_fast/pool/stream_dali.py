"""The NVIDIA DALI stream: images out of host memory or files through a DALI pipeline, on the CPU or to a GPU.

Which images and how they are augmented is decided outside and fed in beside them, so the pipeline has no randomness of
its own: a batch is the same as that of the other streams within 1e-6, and nothing of it needs to be saved.
"""

from __future__ import annotations

import importlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfkd_fast.augment import CropFlip
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.pool.storage import Storage
from dfkd_fast.pool.stream import AugmentSpec, Gathered, gather_extras, on_device
from dfkd_fast.pool.stream_kernel import HostRows


class _Feed(NamedTuple):
    """The inputs of one run of the pipeline, which reads them in place."""

    images: Tensor
    """(B, H, W, C) uint8"""
    shifts: Tensor
    """(B, 2) int32"""
    flips: Tensor
    """(B,) int32"""
    consumed: torch.cuda.Event | None
    """on a GPU: DALI has read it all"""


class DaliStream:
    """A thread gathers raw images into a ring of buffers, DALI moves, crops, mirrors and normalises them.

    `depth` batches of `shape` (B, H, W, C) are prepared ahead.
    """

    def __init__(
        self, storage: Storage, view: AugmentSpec, runtime: Runtime, *, shape: tuple[int, ...], depth: int
    ) -> None:
        self.storage, self.runtime = storage, runtime
        self._depth = max(1, depth)
        self._pipeline = _build(view, runtime, shape, self._depth)
        cuda = runtime.device.type == "cuda"
        # one buffer per batch that may be under way, and one to fill meanwhile
        self._feeds = deque(
            _Feed(
                torch.zeros(shape, dtype=torch.uint8, pin_memory=cuda),
                torch.zeros((shape[0], 2), dtype=torch.int32),
                torch.zeros(shape[0], dtype=torch.int32),
                torch.cuda.Event() if cuda else None,
            )
            for _ in range(self._depth + 2)
        )
        self._filling: deque[tuple[_Feed, Future[dict[str, Tensor]]]] = deque()
        self._running: deque[tuple[_Feed, dict[str, Tensor]]] = deque()
        self._thread = ThreadPoolExecutor(1, "pool gather")
        self._prime()

    def push(self, slots: Tensor, params: CropFlip) -> None:
        feed = self._feeds.popleft()
        shifts, flips = HostRows.send(params.shifts), HostRows.send(params.flips)
        self._filling.append((feed, self._thread.submit(self._fill, feed, HostRows.send(slots), shifts, flips)))
        while self._filling and self._filling[0][1].done() and len(self._running) < self._depth:
            self._run()

    def pop(self) -> Gathered:
        while not self._running:
            self._run()
        stream = torch.cuda.current_stream(self.runtime.device) if self.runtime.device.type == "cuda" else None
        (images,) = self._pipeline.share_outputs(cuda_stream=stream)
        images = torch.from_dlpack(images.as_tensor())  # DALI's memory, which lives as long as the tensor
        self._pipeline.release_outputs()
        feed, extras = self._running.popleft()
        if feed.consumed is not None:
            feed.consumed.record(stream)  # which waits for the images, and they for all that was fed
        self._feeds.append(feed)
        images = images.permute(0, 3, 1, 2) if self.runtime.memory_format == torch.channels_last else images
        return Gathered(images.to(self.runtime.compute_dtype), on_device(extras, self.runtime.device))

    def settle(self) -> None:
        for _, work in self._filling:
            work.result()

    def close(self) -> None:
        self._thread.shutdown()

    def _fill(self, feed: _Feed, slots: HostRows, shifts: HostRows, flips: HostRows) -> dict[str, Tensor]:
        rows = self.storage.locate(slots.wait())
        if feed.consumed is not None:
            feed.consumed.synchronize()
        torch.index_select(self.storage.column("images"), 0, rows, out=feed.images)
        feed.shifts.copy_(shifts.wait())
        feed.flips.copy_(flips.wait())
        return gather_extras(self.storage, rows)

    def _run(self) -> None:
        feed, work = self._filling.popleft()
        extras = work.result()
        self._schedule(feed)
        self._running.append((feed, extras))

    def _schedule(self, feed: _Feed) -> None:
        self._offer(feed)
        self._pipeline.schedule_run()

    def _offer(self, feed: _Feed) -> None:
        for name in ("images", "shifts", "flips"):
            self._pipeline.feed_input(name, getattr(feed, name).numpy())

    def _prime(self) -> None:
        """A pipeline's first run takes as many inputs as it is deep: let it have blank ones, and drop what it makes."""
        for _ in range(self._depth - 1):
            self._offer(self._feeds[0])
        self._schedule(self._feeds[0])
        for _ in range(self._depth):
            self._pipeline.share_outputs()
            self._pipeline.release_outputs()


def import_dali(flag: str = "--pool.stream dali") -> Any:
    """The package nvidia.dali. Raises UserError, naming what asks for it, where it is missing."""
    try:
        importlib.import_module("nvidia.dali.fn")
        return importlib.import_module("nvidia.dali")
    except ImportError as error:
        hint = "pip install 'dfkd-fast[dali]'"
        raise UserError(f"{flag}: NVIDIA DALI is missing ({error}); {hint}") from None


def _build(view: AugmentSpec, runtime: Runtime, shape: tuple[int, ...], depth: int) -> Any:
    dali = import_dali()
    fn, types = dali.fn, dali.types
    batch_size, height, width, _ = shape
    device_id = runtime.device.index or 0 if runtime.device.type == "cuda" else None
    threads = max(1, torch.get_num_threads())
    pipeline = dali.Pipeline(batch_size, threads, device_id, prefetch_queue_depth=depth)
    with pipeline:
        images = fn.external_source(name="images", layout="HWC", dtype=types.UINT8, ndim=3, no_copy=True)
        shifts = fn.external_source(name="shifts", dtype=types.INT32, ndim=1, no_copy=True)
        flips = fn.external_source(name="flips", dtype=types.INT32, ndim=0, no_copy=True)
        if device_id is not None:
            images = images.gpu()
        window = {"start": shifts, "shape": [height, width], "axis_names": "HW"}
        images = fn.slice(images, **window, out_of_bounds_policy="pad", fill_values=0)
        pipeline.set_outputs(
            fn.crop_mirror_normalize(
                images,
                mirror=flips,
                dtype=types.FLOAT,
                mean=[255 * value for value in view.info.mean],
                std=[255 * value for value in view.info.std],
                output_layout="HWC" if runtime.memory_format == torch.channels_last else "CHW",
            )
        )
    pipeline.build()
    return pipeline
