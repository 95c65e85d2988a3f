"""Storage of a pool's images: device memory, pinned host memory, or files read through a mapping."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.files.limits import free_host_memory
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.disk.layout import BLOCK
from dfkd_fast.pool.disk.window import Window, fill_page_cache

StorageKind = Literal["device", "pinned", "mmap"]

DEVICE_SHARE, HOST_SHARE = 0.5, 0.6
"""of the free memory, what a pool takes without being asked to: networks and activations need the rest"""
CACHE_SHARE = 0.8
"""of the free host memory, what the files of a mapped pool may fill and still be taken to stay there"""


class Room(NamedTuple):
    """Free memory in bytes."""

    device: int
    """on the GPU; on a CPU the same as `host`"""
    host: int


def choose_storage(
    requested: Literal["auto"] | StorageKind,
    nbytes: int,
    *,
    device: torch.device,
    room: Room,
    on_disk: bool,
    host_only: bool,
) -> tuple[StorageKind, str]:
    """The kind for a pool of `nbytes`, and in words what was chosen and why.

    `on_disk`: the pool has a journal, so that mmap is possible; `host_only`: the stream reads host memory only.
    Raises UserError for a request that this machine cannot meet.
    """
    cuda = device.type == "cuda"
    if requested == "pinned" and not cuda:
        raise UserError(f"--pool.storage pinned: serves a CUDA device, the run is on {device}; choose device or mmap")
    if requested == "device" and cuda and host_only:
        raise UserError("--pool.storage device: --pool.stream dali reads host memory; choose pinned or mmap")
    if requested == "mmap" and not on_disk:
        raise UserError("--pool.storage mmap: needs a pool folder; choose device")
    if requested != "auto":
        return requested, f"{_size(nbytes)}, as asked"
    needed = _size(nbytes)
    if not (cuda and host_only) and nbytes <= DEVICE_SHARE * room.device:
        return "device", f"{needed} of {_size(room.device)} free on {device}"
    if cuda and nbytes <= HOST_SHARE * room.host:
        return "pinned", f"{needed} of {_size(room.host)} free in host memory, {_size(room.device)} on {device}"
    if not on_disk:
        raise UserError(f"--pool.capacity: {needed} do not fit into memory; lower it, or give the pool a folder")
    return "mmap", f"{needed}; only {_size(room.device)} free on {device}, {_size(room.host)} in host memory"


def stays_cached(nbytes: int) -> bool:
    """Whether files of so many bytes, once read, may be expected to stay in the page cache."""
    return nbytes <= CACHE_SHARE * free_host_memory()


def free_memory(device: torch.device) -> Room:
    """What is free now on the device and in host memory."""
    host = free_host_memory()
    return Room(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host, host)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"


class Storage(Protocol):
    """The columns of a pool, images and extras, each (rows, ...). A slot's row is asked of `locate`."""

    kind: StorageKind

    def column(self, name: str) -> Tensor:
        """All rows of one field."""

    def extras(self) -> list[str]:
        """Names of the columns besides the images."""

    def write(self, index: int, fields: Mapping[str, Tensor]) -> None:
        """Put (B, ...) values into the slots of images number `index` and on, counted over the pool's whole life."""

    def locate(self, slots: Tensor) -> Tensor:
        """Rows of the slots (B,) int64, which must be filled."""


class MemoryStorage:
    """Reserved memory: addresses never move. `pinned` puts the images into page-locked host memory; what else a slot
    holds is small and stays on the device.
    """

    def __init__(
        self, capacity: int, image_shape: tuple[int, ...], device: torch.device, *, pinned: bool = False
    ) -> None:
        self.capacity, self.device = capacity, device
        self.kind: StorageKind = "pinned" if pinned else "device"
        images = torch.empty((capacity, *image_shape), dtype=torch.uint8, device="cpu" if pinned else device)
        self._columns = {"images": pin(images) if pinned else images}

    def column(self, name: str) -> Tensor:
        return self._columns[name]

    def extras(self) -> list[str]:
        return [name for name in self._columns if name not in ("images", "labels")]

    def write(self, index: int, fields: Mapping[str, Tensor]) -> None:
        for name, values in fields.items():
            if name not in self._columns:
                shape = (self.capacity, *values.shape[1:])
                self._columns[name] = torch.empty(shape, dtype=values.dtype, device=self.device)
            column, start = self._columns[name], index % self.capacity
            before_end = min(len(values), self.capacity - start)
            column[start : start + before_end].copy_(values[:before_end], non_blocking=True)
            column[: len(values) - before_end].copy_(values[before_end:], non_blocking=True)

    def locate(self, slots: Tensor) -> Tensor:
        return slots


class MappedStorage:
    """The journal's own files, read through one mapping per field. Nothing is kept in memory, nothing written twice.

    Files that fit into the page cache are mapped with large pages. From larger ones each batch's rows are asked for
    at once, and nothing around them.
    """

    kind: StorageKind = "mmap"

    def __init__(self, journal: Journal, capacity: int, nbytes: int) -> None:
        self.journal, self.capacity = journal, capacity
        self._cached = stays_cached(nbytes)
        if self._cached:
            journal.prepare = fill_page_cache
        self._written = self._placed = self._places = 0
        self._mapping = threading.Lock()  # a stream's thread and the main thread may both come upon a new segment
        self._windows: dict[str, Window] = {}
        self._columns: dict[str, Tensor] = {}

    def column(self, name: str) -> Tensor:
        return self._columns[name]

    def extras(self) -> list[str]:
        return [name for name in self._columns if name not in ("images", "labels")]

    def write(self, index: int, fields: Mapping[str, Tensor]) -> None:
        self._written = index + len(next(iter(fields.values())))

    def locate(self, slots: Tensor) -> Tensor:
        """Waits until what was added has been written, and maps segments that are new. Rows are on the host."""
        slots, held = slots.cpu(), min(self._written, self.capacity)
        if not ((slots >= 0) & (slots < held)).all():
            raise IndexError(f"pool: slots {int(slots.min())} to {int(slots.max())} asked for, it holds {held}")
        self.journal.drain()
        with self._mapping:
            self._place()
        last = self._written - 1
        indices = last - (last - slots) % self.capacity  # of the newest image in each slot
        rows = self.journal.manifest.positions(indices) % (self._places * self.journal.manifest.layout.records)
        if not self._cached:
            wanted = rows.tolist()
            for name in ("images", *self.extras()):
                self._windows[name].fetch(wanted, self.journal.manifest.layout.fields[name].nbytes)
        return rows

    def _place(self) -> None:
        manifest = self.journal.manifest
        layout = manifest.layout
        if not self._windows:
            # A ring's images span at most one segment more than they fill: a new one takes the place of one they left.
            self._places = -(-(self.capacity + BLOCK * len(manifest.dropped)) // layout.records) + 1
            for name, field in layout.fields.items():
                rows = self._places * layout.records
                self._windows[name] = Window(rows * field.nbytes, cached=self._cached)
                self._columns[name] = self._windows[name].tensor(field.torch_dtype, (rows, *field.shape))
        end = -(-self.journal.count // layout.records)
        for number in range(max(self._placed, manifest.first // layout.records, end - self._places), end):
            self._map(number)
        self._placed = end

    def _map(self, number: int) -> None:
        layout, file = self.journal.manifest.layout, self.journal.files.segment(number)
        handle = os.open(file, os.O_RDONLY)
        try:
            for name, field in layout.fields.items():
                size = layout.records * field.nbytes
                self._windows[name].place(number % self._places * size, handle, layout.offset(name), size)
        finally:
            os.close(handle)


def make_storage(
    kind: StorageKind, capacity: int, image_shape: tuple[int, ...], device: torch.device, journal: Journal | None
) -> Storage:
    """The storage of a kind for images of shape (H, W, C); mmap reads the journal's files."""
    if kind != "mmap":
        return MemoryStorage(capacity, image_shape, device, pinned=kind == "pinned")
    assert journal is not None, "mmap needs a journal"
    return MappedStorage(journal, capacity, capacity * math.prod(image_shape))


def pin(memory: Tensor) -> Tensor:
    """Page-lock a host tensor where it lies: torch's own pinned allocator would round its size up to a power of two."""
    torch.cuda.init()
    cudart = torch.cuda.cudart()
    code = cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    if int(code) != 0:
        raise UserError(f"--pool.storage pinned: {memory.nbytes} bytes cannot be page-locked ({code}); choose mmap")
    weakref.finalize(memory, cudart.cudaHostUnregister, memory.data_ptr()).atexit = False
    return memory
