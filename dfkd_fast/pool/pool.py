"""The memory pool: uint8 images with their labels and extras, one write path and one read path."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.disk.layout import BLOCK, Field, check_batch
from dfkd_fast.pool.disk.shards import drop_other_shards, redistribute
from dfkd_fast.pool.disk.writer import on_host
from dfkd_fast.pool.quantize import Quantize, to_bytes
from dfkd_fast.pool.storage import StorageKind, make_storage
from dfkd_fast.pool.stream import AugmentSpec, Stream
from dfkd_fast.pool.stream import PoolBatch as PoolBatch
from dfkd_fast.pool.streams import StreamChoice, make_stream
from dfkd_fast.rng import derive_seed
from dfkd_fast.sampling import Sampler

Policy = Literal["append", "cap", "ring"]
REPEATS = "repeats"  # the extra, (B,) int64 on the host: how often an image comes in one pass over the pool


class Pool:
    """A pool of fixed capacity in `device` memory, `pinned` host memory, or the journal's files read through a mapping.

    The whole capacity is reserved at the start: addresses never move. Pages of host memory are touched as they fill.
    `policy` "append" refuses to grow beyond the capacity, "cap" drops what would, "ring" overwrites the oldest slots.
    What is added is appended to the journal in the background, if there is one, and safe once `flush` has returned.
    Ranks with global batches have the same pool: one has the journal, the others know that it is `written_by_another`.
    """

    def __init__(
        self,
        capacity: int,
        image_shape: tuple[int, int, int],
        *,
        runtime: Runtime,
        num_classes: int | None = None,
        journal: Journal | None = None,
        written_by_another: Path | None = None,
        storage: StorageKind = "device",
        stream: StreamChoice = "auto",
        prefetch: int = 0,
        policy: Policy = "append",
        quantize: Quantize = "round",
    ) -> None:
        if capacity < 1:
            raise ValueError(f"pool capacity {capacity}: choose 1 or more")
        self.capacity, self.runtime, self.journal = capacity, runtime, journal
        self._written_by_another = written_by_another
        self.policy, self.quantize, self.stream, self.prefetch = policy, quantize, stream, prefetch
        channels, height, width = image_shape
        self.pixel_shape = (height, width, channels)
        self.storage = make_storage(storage, capacity, self.pixel_shape, runtime.device, journal)
        self.labels = torch.full((capacity,), -1, dtype=torch.int64, device=runtime.device)
        self.class_counts = torch.zeros(num_classes or 0, dtype=torch.int64, device=runtime.device)
        """images of each class (K,); empty when the pool was not told how many classes there are"""
        self.size = torch.zeros((), dtype=torch.int64, device=runtime.device)
        """`len(self)` as a scalar on the device, at an address that never moves"""
        self.repeats: Tensor | None = None
        """`REPEATS` of each slot (capacity,), on the host, where images have it"""
        self.written = 0
        """images ever added; the slot of the next one is this modulo the capacity"""
        self._fields: dict[str, Field] | None = None
        self._streams: dict[tuple[AugmentSpec, int, int], Stream] = {}

    def __len__(self) -> int:
        return min(self.written, self.capacity)

    @torch.no_grad()
    def add(self, images: Tensor, labels: Tensor, **extras: Tensor) -> Tensor:
        """Store images (B, C, H, W) in [0, 1] as uint8, with labels (B,) and extras (B, ...). Returns their slots.

        The slots are (n,) int64: all B, or under the policy "cap" the first n for which there is room.
        Raises ValueError for images that are not finite, are too many or do not fit to those that are there: they
        never enter the pool; and UserError for what goes wrong in the journal.
        """
        count = self._admit(len(images))
        return self._put(to_bytes(images[:count], self.quantize), labels, extras)

    @torch.no_grad()
    def add_bytes(self, pixels: Tensor, labels: Tensor, **extras: Tensor) -> Tensor:
        """The same for images that are bytes already, (B, H, W, C) uint8."""
        return self._put(pixels[: self._admit(len(pixels))].clone(), labels, extras)

    def read(self, indices: Tensor, view: AugmentSpec) -> PoolBatch:
        """Gather, crop, flip and normalise slots (B,) int64, with parameters from the device's default generator."""
        stream = self._stream(view, len(indices), 0)
        stream.push(indices, view.draw(len(indices), self.runtime.device))
        images, extras = stream.pop()
        return PoolBatch(images, self.labels[indices], indices, extras)

    def batches(self, sampler: Sampler, view: AugmentSpec, steps: int) -> Generator[PoolBatch, None, None]:
        """`steps` batches of the sampler's slots, `prefetch` of them prepared ahead.

        A rank with global batches gets its part of each.
        What is drawn depends on the seed of the phase only (`rng.seed_phase`), not on storage, stream or prefetch. A
        batch shows the pool, and the priorities, as they were `prefetch` steps before it is handed out.
        """
        global_batch = self.runtime.global_batch
        generator = torch.Generator(self.runtime.device).manual_seed(derive_seed(torch.initial_seed(), "augment"))
        stream = self._stream(view, sampler.batch_size // global_batch.size, self.prefetch)
        drawn: list[PoolBatch] = []  # but for what the stream makes
        try:
            for step in range(steps + self.prefetch):
                if step < steps:
                    draw = sampler.draw()
                    slots, is_weights = global_batch.local_rows(draw.slots), global_batch.local_rows(draw.is_weights)
                    params = view.draw(sampler.batch_size, generator.device, generator).part(global_batch)
                    stream.push(slots, params)
                    drawn.append(PoolBatch(slots, self.labels[slots], slots, {}, is_weights, params.choices))
                if step >= self.prefetch:
                    yield drawn.pop(0)._replace(**stream.pop()._asdict())
        finally:  # the caller may stop early: what is under way is nobody's
            for _ in drawn:
                stream.pop()

    def newest(self, count: int) -> tuple[Tensor, Tensor]:
        """The last `count` images added (B, H, W, C) uint8 and their labels (B,)."""
        count = min(count, len(self))
        slots = torch.arange(self.written - count, self.written, device=self.runtime.device) % self.capacity
        return self.pixels(slots), self.labels[slots]

    def pixels(self, slots: Tensor) -> Tensor:
        """Images (B, H, W, C) uint8 as they are stored."""
        rows = self.storage.locate(slots)
        column = self.storage.column("images")
        return column[rows.to(column.device)]

    def flush(self) -> dict[str, Any]:
        """Wait until what was added is safe on the disk; returns what a checkpoint records. Every rank calls it."""
        count = self.journal.flush() if self.journal is not None else self.written
        counts = torch.zeros(self.runtime.world_size, dtype=torch.int64, device=self.runtime.device)
        counts[self.runtime.rank] = count
        return {"shards": self.runtime.all_reduce(counts).tolist()}

    def restore(self, manifest: Mapping[str, Any]) -> str:
        """Fill an empty pool from its journal as it was when `manifest` was taken; what came later is dropped.

        Says what is not as it was, if anything: another number of ranks, or what a repair had to drop.
        Every block is checked. Raises UserError for damage and for a pool of other images.
        """
        counts, runtime = manifest["shards"], self.runtime
        if self._written_by_another is not None and sum(counts):
            self._load(PoolFiles(self._written_by_another))
        if self.journal is None:
            if self._written_by_another is None:
                raise ValueError("pool: a pool without a journal cannot be restored")
            return ""
        if len(counts) != runtime.world_size:
            for fields in redistribute(self._root, counts, runtime.rank, runtime.world_size):
                self._put(fields.pop("images"), fields.pop("labels"), fields)
            now = f"shared out anew among {runtime.world_size}: the same images, but not bit for bit the same run"
            return f"pool: written by {len(counts)} ranks, {now}"
        self.journal.restore(counts[runtime.rank])
        if self.journal.count == 0:
            return ""
        self._load(self.journal.files)
        lost = len(self.journal.manifest.dropped)
        return (
            f"pool: a repair has dropped {lost} blocks of up to {BLOCK} images; the run goes on without" if lost else ""
        )

    @property
    def _root(self) -> Path:
        assert self.journal is not None
        return self.journal.folder if self.runtime.world_size == 1 else self.journal.folder.parent

    def _load(self, files: PoolFiles) -> None:
        held, own = files.manifest.layout.fields["images"], Field("uint8", self.pixel_shape)
        if held != own:
            raise UserError(f"pool {files.folder}: holds images of {held}, the run makes {own}; choose another run")
        end = files.manifest.live(files.manifest.count)
        start = max(files.manifest.live(files.manifest.first), end - self.capacity)
        for index, fields in files.read(start, end):
            self._store(index, fields)

    def release(self, manifest: Mapping[str, Any]) -> None:
        """No pool older than the one of `manifest` will be restored any more: files that only those need may go."""
        counts, runtime = manifest["shards"], self.runtime
        if self.journal is None or len(counts) != runtime.world_size:
            return
        self.journal.release(counts[runtime.rank])
        if runtime.is_main:
            drop_other_shards(self._root, runtime.world_size)

    def global_class_counts(self) -> Tensor:
        """`class_counts` (K,) over all ranks. Every rank calls it."""
        return self.runtime.all_reduce(self.class_counts.clone())

    def close(self) -> None:
        """End threads and give up the journal."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        if self.journal is not None:
            self.journal.close()

    def _admit(self, count: int) -> int:
        """How many of `count` new images may be added."""
        room = self.capacity if self.policy == "ring" else self.capacity - self.written
        if count > room and self.policy != "cap":
            raise ValueError(f"pool: {self.written} + {count} images exceed the capacity of {self.capacity}")
        return min(count, room)

    def _put(self, pixels: Tensor, labels: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        count = len(pixels)
        slots = (torch.arange(count, device=self.runtime.device) + self.written) % self.capacity
        if not count:
            return slots
        fields = {"images": pixels, "labels": labels[:count].to(torch.int64, copy=True)}
        fields |= {name: values[:count].detach().clone() for name, values in extras.items()}
        self._fields = check_batch(fields, Field("uint8", self.pixel_shape), self._fields)
        for stream in self._streams.values():
            stream.settle()
        if self.journal is not None:
            self.journal.append(*on_host(fields))
        self._store(self.written, fields)
        return slots

    def _store(self, index: int, fields: Mapping[str, Tensor]) -> None:
        labels, count = fields["labels"].to(self.runtime.device), len(fields["labels"])
        slots = (torch.arange(count, device=self.runtime.device) + index) % self.capacity
        if len(self.class_counts):
            for classes, change in ((self.labels[slots], -1), (labels, 1)):
                known = torch.where(classes >= 0, change, 0)  # -1 is an empty slot, or unknown
                self.class_counts.index_add_(0, classes.clamp(min=0), known)
        self.labels[slots] = labels
        if REPEATS in fields:
            self.repeats = torch.ones(self.capacity, dtype=torch.int64) if self.repeats is None else self.repeats
            self.repeats[torch.arange(index, index + count) % self.capacity] = fields[REPEATS].cpu()
        self.storage.write(index, {name: values for name, values in fields.items() if name != "labels"})
        self.written = index + count
        self.size.fill_(len(self))

    def _stream(self, view: AugmentSpec, batch_size: int, depth: int) -> Stream:
        key = (view, batch_size, depth)
        if key not in self._streams:
            shape = (batch_size, *self.pixel_shape)
            self._streams[key] = make_stream(self.stream, self.storage, view, self.runtime, shape=shape, depth=depth)
        return self._streams[key]
