"""The pool on disk: append-only files, so that a checkpoint records a count and copies no image.

Each field of the pool (images, labels, every extra) is one file of fixed-size records in the order of writing. A batch
is safe once `flush` has returned. Whatever lies beyond the count that a checkpoint recorded belongs to an abandoned
phase: `truncate` drops it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

MANIFEST = "manifest.json"


class Journal:
    """Append-only record files under one folder. Fields are fixed by the first batch; dtypes and shapes may not
    change.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        """records appended so far"""
        self._files: dict[str, int] = {}
        self._fields: dict[str, tuple[str, list[int]]] = {}

    def append(self, fields: Mapping[str, Tensor]) -> None:
        """Write one record per row of each (B, ...) tensor behind what is there. Not yet safe: see `flush`."""
        arrays = {name: value.detach().cpu().contiguous() for name, value in fields.items()}
        kinds = {
            name: (str(value.dtype).removeprefix("torch."), list(value.shape[1:])) for name, value in arrays.items()
        }
        if not self._fields:
            self._create(kinds)
        if kinds != self._fields:
            raise ValueError(f"pool {self.folder}: a batch of {kinds}; the pool holds {self._fields}")
        for name, value in arrays.items():
            if value.numel():
                payload = memoryview(value.view(torch.uint8).numpy().data).cast("B")
                _write_all(self._files[name], payload, self.count * self._record_bytes(name))
        self.count += len(next(iter(arrays.values())))

    def flush(self) -> dict[str, int]:
        """Wait until every record is on the disk; returns the manifest entry that a checkpoint records."""
        for handle in self._files.values():
            os.fsync(handle)
        return {"count": self.count}

    def truncate(self, count: int) -> dict[str, Tensor]:
        """Open what an earlier process wrote, drop all records from `count` on, and return the rest, memory-mapped.

        Raises ValueError when the files hold fewer records than that.
        """
        path = self.folder / MANIFEST
        if count == 0 and not path.exists():
            return {}
        self._fields = {name: (dtype, shape) for name, (dtype, shape) in json.loads(path.read_text()).items()}
        tensors: dict[str, Tensor] = {}
        for name, (dtype, shape) in self._fields.items():
            file, size = self.folder / f"{name}.bin", count * self._record_bytes(name)
            held = file.stat().st_size
            if held < size:
                raise ValueError(f"pool {file}: holds {held} bytes, fewer than the {size} of {count} images")
            os.truncate(file, size)
            self._files[name] = os.open(file, os.O_RDWR)
            if count:
                kind = getattr(torch, dtype)
                numel = size // kind.itemsize
                tensors[name] = torch.from_file(str(file), shared=False, size=numel, dtype=kind).view(count, *shape)
        self.count = count
        return tensors

    def close(self) -> None:
        """Close the files."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()

    def _create(self, kinds: dict[str, tuple[str, list[int]]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MANIFEST).write_text(json.dumps(kinds, indent=1))
        self._fields = kinds
        for name in kinds:
            self._files[name] = os.open(self.folder / f"{name}.bin", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def _record_bytes(self, name: str) -> int:
        dtype, shape = self._fields[name]
        return int(torch.Size(shape).numel()) * getattr(torch, dtype).itemsize


def _write_all(handle: int, payload: memoryview, offset: int) -> None:
    """pwrite until everything is written: a full disk raises OSError here, whereas a store into a mapping dies of
    SIGBUS.
    """
    while payload:
        written = os.pwrite(handle, payload, offset)
        payload, offset = payload[written:], offset + written
