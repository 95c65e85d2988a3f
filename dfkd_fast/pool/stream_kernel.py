"""The fused stream: `gather_augment` on memory that the device can address, behind a double buffer where it cannot."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dfkd_fast.augment import CropFlip
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.pool.storage import Storage
from dfkd_fast.pool.stream import AugmentSpec, DirectStream, Gathered, gather_extras, on_device
from dfkd_kernels import gather_augment


def augment(images: Tensor, rows: Tensor, params: CropFlip, *, view: AugmentSpec, runtime: Runtime) -> Tensor:
    """`gather_augment` for a view."""
    return gather_augment(
        images,
        rows,
        params.shifts,
        params.flips,
        view.info.mean,
        view.info.std,
        pad=view.pad,
        dtype=runtime.compute_dtype,
        memory_format=runtime.memory_format,
    )


def kernel_stream(storage: Storage, view: AugmentSpec, runtime: Runtime) -> DirectStream:
    """One launch per batch. Images in pinned host memory are read in place, over the bus."""
    return DirectStream(storage, lambda images, rows, params: augment(images, rows, params, view=view, runtime=runtime))


@dataclass
class HostRows:
    """Slots on their way to the host thread: a copy in flight must have arrived before it is read."""

    slots: Tensor
    arrived: torch.cuda.Event | None = None

    @classmethod
    def send(cls, slots: Tensor) -> HostRows:
        """Start the copy to the host, without waiting for it."""
        if not slots.is_cuda:
            return cls(slots)
        host = torch.empty(slots.shape, dtype=slots.dtype, pin_memory=True).copy_(slots, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(slots.device))
        return cls(host, event)

    def wait(self) -> Tensor:
        """The slots, when they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.slots


@dataclass
class _Buffer:
    """One batch of raw images on its way: gathered into `host`, copied to `device`, read by the kernel."""

    host: Tensor
    device: Tensor
    copied: torch.cuda.Event | None = None
    consumed: torch.cuda.Event | None = None
    work: Future[dict[str, Tensor]] = field(default_factory=Future)
    params: CropFlip | None = None


class StagedStream:
    """A thread gathers the rows of a batch into pinned memory and copies them to the device on a stream of its own,
    while the network works on earlier batches.

    The thread and the two streams meet in events only; nobody waits for the device but the thread, and it only for
    buffers that are still being read. `depth` batches of `shape` (B, H, W, C) are prepared ahead.
    """

    def __init__(
        self, storage: Storage, view: AugmentSpec, runtime: Runtime, *, shape: tuple[int, ...], depth: int
    ) -> None:
        self.storage, self.view, self.runtime = storage, view, runtime
        self._cuda = runtime.device.type == "cuda"
        self._side = torch.cuda.Stream(runtime.device) if self._cuda else None
        self._rows = torch.arange(shape[0], device=runtime.device)
        self._free = deque(self._buffer(shape) for _ in range(depth + 1))
        self._busy: deque[_Buffer] = deque()
        self._thread = ThreadPoolExecutor(1, "pool gather")

    def push(self, slots: Tensor, params: CropFlip) -> None:
        buffer = self._free.popleft()
        buffer.params = params
        buffer.work = self._thread.submit(self._prepare, buffer, HostRows.send(slots))
        self._busy.append(buffer)

    def pop(self) -> Gathered:
        buffer = self._busy.popleft()
        extras = buffer.work.result()
        if buffer.copied is not None:
            buffer.copied.wait(torch.cuda.current_stream(self.runtime.device))  # the network's, not the host
        assert buffer.params is not None
        images = augment(buffer.device, self._rows, buffer.params, view=self.view, runtime=self.runtime)
        if buffer.consumed is not None:
            buffer.consumed.record(torch.cuda.current_stream(self.runtime.device))
        self._free.append(buffer)
        return Gathered(images, on_device(extras, self.runtime.device))

    def settle(self) -> None:
        for buffer in self._busy:
            buffer.work.result()

    def close(self) -> None:
        self._thread.shutdown()

    def _buffer(self, shape: tuple[int, ...]) -> _Buffer:
        host = torch.empty(shape, dtype=torch.uint8, pin_memory=self._cuda)
        if not self._cuda:
            return _Buffer(host, host)
        return _Buffer(host, torch.empty_like(host, device=self.runtime.device), torch.cuda.Event(), torch.cuda.Event())

    def _prepare(self, buffer: _Buffer, pending: HostRows) -> dict[str, Tensor]:
        rows = self.storage.locate(pending.wait())
        if buffer.copied is not None:
            buffer.copied.synchronize()  # the copy of the batch before, out of the same host memory
        torch.index_select(self.storage.column("images"), 0, rows, out=buffer.host)
        if self._side is not None and buffer.copied is not None and buffer.consumed is not None:
            with torch.cuda.stream(self._side):
                self._side.wait_event(buffer.consumed)
                buffer.device.copy_(buffer.host, non_blocking=True)
                buffer.copied.record(self._side)
        return gather_extras(self.storage, rows)
