"""The pool on disk: an append-only record of every image, so that a checkpoint records a count and copies no image.

Images are written behind one another into segment files, positions counting up for the whole life of the pool; nothing
is ever overwritten that a manifest speaks of. `flush` makes what was appended safe and commits it. What lies beyond
the count that a checkpoint recorded belongs to an abandoned phase: `restore` drops it. A ring is the same record, of
which only the end is read; `release` deletes the segments that no checkpoint needs any more.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.files.write import make_folder, sweep, sync_folder
from dfkd_fast.pool.disk.files import PoolFiles, as_bytes
from dfkd_fast.pool.disk.layout import BLOCK, Layout, fields_of
from dfkd_fast.pool.disk.manifest import COPY, MANIFEST, Manifest, load_manifest, lock_folder
from dfkd_fast.pool.disk.writer import WriteQueue


class Journal:
    """Writes the pool in `folder`, one process at a time. `capacity` is the number of images in use at once.

    A pool that the folder holds already is taken up by `restore`; without that the first `append` replaces it if
    `replace` says so, and raises UserError if not.
    """

    def __init__(self, folder: Path, *, capacity: int, replace: bool = False) -> None:
        self.folder, self.capacity, self._replace = folder, capacity, replace
        self.count = 0
        """position behind the last record that was appended, written or still waiting"""
        self.prepare: Callable[[int, int], None] | None = None
        """called with handle and size of each new segment file before anything is written to it"""
        self._files: PoolFiles | None = None
        self._committed = 0
        self._queue = WriteQueue()
        self._handles: dict[int, int] = {}
        self._lock: int | None = None

    @property
    def files(self) -> PoolFiles:
        """What `flush` has committed or `restore` has taken up."""
        assert self._files is not None, "nothing was appended or restored"
        return self._files

    @property
    def manifest(self) -> Manifest:
        """Layout, dropped blocks and checksums of `files`."""
        return self.files.manifest

    def append(self, fields: Mapping[str, Tensor], ready: Callable[[], None] | None = None) -> None:
        """Write one record per row of each contiguous (B, ...) CPU tensor behind what is there, in the background.

        The tensors must not change afterwards; `ready` is called before they are read, and waits for what fills them.
        Not yet safe: see `flush`. Raises UserError for a batch of other fields, and what writing raised.
        """
        kinds = fields_of(fields)
        if self._files is None:
            self._create(Layout.for_capacity(kinds, self.capacity))
        known = self.manifest.layout.fields
        if kinds != known:
            raise UserError(f"pool {self.folder}: a batch of {_word(kinds)}; it holds {_word(known)}")
        self._queue.put(partial(self._write, self.count, dict(fields), ready))
        self.count += len(next(iter(fields.values())))

    def drain(self) -> None:
        """Wait until what was appended can be read back."""
        self._queue.drain()

    def flush(self) -> int:
        """Make all that was appended safe and commit it; returns the count, which a checkpoint records."""
        self.drain()
        if self.count != self._committed:
            manifest = self.manifest
            try:
                for handle in self._handles.values():
                    os.fsync(handle)
                manifest.count = self.count
                manifest.save(self.folder)
            except OSError as error:
                raise write_error(error, self.folder / MANIFEST) from error
            self._committed = self.count
            self._close_segments(keep=self.count // manifest.layout.records)
        return self.count

    def restore(self, count: int) -> None:
        """Take up the pool as it was when `flush` returned `count`; what came later is dropped.

        Raises UserError when the folder holds less, is damaged there or is being written to.
        """
        if count == 0 and not (self.folder / MANIFEST).exists():
            return
        self._claim()
        manifest = load_manifest(self.folder)
        if manifest.count < count:
            raise UserError(
                f"pool {self.folder / MANIFEST}: holds {manifest.count} images, the checkpoint has {count}; "
                "take the pool that belongs to the checkpoint, or start a new run"
            )
        self._files = PoolFiles(self.folder, manifest)
        self._truncate(count)
        self.count = self._committed = manifest.count
        self._sweep()

    def release(self, count: int) -> None:
        """Delete the segments that only pools older than the one with `count` (of an earlier `flush`) need.

        To be called when everything is flushed.
        """
        if self._files is None:
            return
        manifest = self._files.manifest
        records, before = manifest.layout.records, manifest.first
        oldest = torch.tensor(max(0, manifest.live(count) - self.capacity))
        first = int(manifest.positions(oldest)) // records * records
        if first > before:
            manifest.forget_before(first)
            manifest.save(self.folder)
            for number in range(before // records, first // records):
                self._files.segment(number).unlink(missing_ok=True)

    def close(self) -> None:
        """Finish writing, close the files and give up the lock. What was not flushed is not safe."""
        self._queue.close()
        self._close_segments()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _claim(self) -> None:
        if self._lock is None:
            try:
                make_folder(self.folder)
                self._lock = lock_folder(self.folder)
            except OSError as error:
                raise write_error(error, self.folder) from error

    def _create(self, layout: Layout) -> None:
        self._claim()
        known = [self.folder / name for name in (MANIFEST, COPY) if (self.folder / name).exists()]
        if known and not self._replace:
            raise UserError(f"pool {self.folder}: holds a pool already; choose another folder")
        for file in known:
            file.unlink()
        sync_folder(self.folder)
        self._files = PoolFiles(self.folder, Manifest(layout))
        self._sweep()

    def _write(self, position: int, fields: Mapping[str, Tensor], ready: Callable[[], None] | None) -> None:
        if ready is not None:
            ready()
        manifest, count = self.manifest, len(next(iter(fields.values())))
        for start, stop in manifest.layout.pieces(position, position + count):
            number, record = divmod(start, manifest.layout.records)
            handle = self._segment(number)
            for name, values in fields.items():
                payload = as_bytes(values[start - position : stop - position])
                try:
                    _write_all(handle, payload, manifest.layout.offset(name, record))
                except OSError as error:
                    raise write_error(error, self.files.segment(number)) from error
                manifest.extend(name, start, payload)

    def _segment(self, number: int) -> int:
        """A segment open for writing, its whole size reserved: a full disk is an error before anything is written."""
        if number not in self._handles:
            file = self.files.segment(number)
            is_new = not file.exists()
            try:
                self._handles[number] = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
                os.posix_fallocate(self._handles[number], 0, self.manifest.layout.segment_bytes)
            except OSError as error:
                raise write_error(error, file) from error
            if self.prepare is not None and is_new:
                self.prepare(self._handles[number], self.manifest.layout.segment_bytes)
        return self._handles[number]

    def _truncate(self, count: int) -> None:
        manifest = self.manifest
        block, rest = divmod(count, BLOCK)
        if block in manifest.dropped:  # the checkpoint ends within a block that a repair gave up: go on behind it
            count, rest = (block + 1) * BLOCK, 0
        if count >= manifest.count:
            return
        partial_block: dict[str, Tensor] = {}
        if rest:
            end = min((block + 1) * BLOCK, manifest.count)
            found = self.files.check(block, block * BLOCK, end, partial_block)
            if found is not None:
                raise found.error()
        manifest.forget_after(count)
        for name, values in partial_block.items():
            manifest.checksums[name].pop()
            manifest.extend(name, block * BLOCK, as_bytes(values[:rest]))
        manifest.save(self.folder)  # before anything is written over what the old manifest speaks of

    def _sweep(self) -> None:
        """Delete segment files that the manifest does not speak of, and what killed writers have left."""
        manifest = self.manifest
        first, last = manifest.first // manifest.layout.records, -(-manifest.count // manifest.layout.records)
        named = {self.files.segment(number) for number in range(first, last)}
        for file in self.folder.glob("segment-*.bin"):
            if file not in named:
                file.unlink()
        sweep(self.folder)

    def _close_segments(self, keep: int | None = None) -> None:
        for number in [number for number in self._handles if number != keep]:
            os.close(self._handles.pop(number))


def write_error(error: OSError, file: Path) -> Exception:
    """A full disk or a folder that cannot be written to, worded for the user; any other error as it is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"pool {file}: no room ({error.strerror}); what was flushed is safe: free space, then resume from the last "
            "checkpoint"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG):
        return UserError(f"pool {file}: cannot be written ({error.strerror}); choose a folder that can be")
    return error


def _word(fields: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {field}" for name, field in fields.items())


def _write_all(handle: int, payload: memoryview, offset: int) -> None:
    """pwrite until all is written: a full disk raises OSError here, a store into a mapping would die of SIGBUS."""
    while payload:
        written = os.pwrite(handle, payload, offset)
        payload, offset = payload[written:], offset + written
