"""Reading a pool's files block by block, each checked against its checksum. Any process may, while another writes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.pool.disk.layout import BLOCK
from dfkd_fast.pool.disk.manifest import Manifest, load_manifest, repair_hint


class Damage(NamedTuple):
    """A block that does not hold what was written to it."""

    file: Path
    block: int
    images: int
    """images in it"""
    why: str

    @property
    def end(self) -> int:
        """Position behind its last image."""
        return self.block * BLOCK + self.images

    def error(self) -> UserError:
        """As a message to the user."""
        which = f"images {self.block * BLOCK:,} to {self.end - 1:,}"
        return UserError(f"pool {self.file}: {self.why} ({which}); {repair_hint(self.file.parent)}")


class PoolFiles:
    """The files of a pool as a manifest describes them."""

    def __init__(self, folder: Path, manifest: Manifest | None = None) -> None:
        self.folder = folder
        self.manifest = manifest if manifest is not None else load_manifest(folder)

    def __len__(self) -> int:
        return self.manifest.live(self.manifest.count) - self.manifest.live(self.manifest.first)

    def segment(self, number: int) -> Path:
        """The file of a segment."""
        return self.folder / f"segment-{number:06d}.bin"

    def read(
        self, start: int, stop: int, names: Sequence[str] | None = None
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Every block that holds records of [start, stop), as (index of its first record there, its fields).

        `start` and `stop` are indices, counted without what was dropped; `names` are the fields that are read, by
        default all. The tensors are valid until the next block.
        Raises UserError at the first block that is damaged.
        """
        buffers: dict[str, Tensor] = {}
        for block, first, last in self._blocks():
            index = self.manifest.live(first)
            if index + last - first <= start or index >= stop:
                continue
            found = self.check(block, first, last, buffers, names)
            if found is not None:
                raise found.error()
            skip, end = max(0, start - index), min(last - first, stop - index)
            yield index + skip, {name: values[skip:end] for name, values in buffers.items()}

    def damage(self, among: Container[int] | None = None) -> Iterator[Damage]:
        """Every damaged block; of all, or of those `among` the numbers given."""
        buffers: dict[str, Tensor] = {}
        for block, first, last in self._blocks():
            if among is not None and block not in among:
                continue
            found = self.check(block, first, last, buffers)
            if found is not None:
                yield found

    def check(
        self, block: int, first: int, last: int, buffers: dict[str, Tensor], names: Sequence[str] | None = None
    ) -> Damage | None:
        """Read the positions [first, last) of a block into `buffers`; what is wrong with them, if anything."""
        layout = self.manifest.layout
        file = self.segment(first // layout.records)
        try:
            with open(file, "rb", buffering=0) as handle:
                for name in layout.fields if names is None else names:
                    field = layout.fields[name]
                    if name not in buffers:
                        buffers[name] = torch.empty((BLOCK, *field.shape), dtype=field.torch_dtype)
                    target = as_bytes(buffers[name][: last - first])
                    if _read_all(handle.fileno(), target, layout.offset(name, first % layout.records)) < len(target):
                        return Damage(file, block, last - first, "the file is cut short")
                    if zlib.crc32(target) != self.manifest.checksum(name, block):
                        return Damage(file, block, last - first, f"the checksum of its {name} does not fit")
        except OSError as error:
            return Damage(file, block, last - first, f"cannot be read: {error.strerror}")
        return None

    def _blocks(self) -> Iterator[tuple[int, int, int]]:
        """Number, first position and end of every block that was not dropped."""
        first, count, dropped = self.manifest.first, self.manifest.count, set(self.manifest.dropped)
        for block in range(first // BLOCK, -(-count // BLOCK)):
            if block not in dropped:
                yield block, block * BLOCK, min(block * BLOCK + BLOCK, count)


def as_bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return values.view(-1).view(torch.uint8).numpy().data if values.numel() else memoryview(b"")


def _read_all(handle: int, target: memoryview, offset: int) -> int:
    done = 0
    while done < len(target):
        count = os.preadv(handle, [target[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done
