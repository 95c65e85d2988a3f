"""The manifest of a pool on disk: what is committed, and a checksum for each block of it."""

from __future__ import annotations

import json
import zlib
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.files.digests import crc_of_json
from dfkd_fast.files.locks import lock_file
from dfkd_fast.files.write import write_file
from dfkd_fast.messages.terminal import command
from dfkd_fast.pool.disk.layout import BLOCK, Field, Layout

MAGIC, VERSION = "dfkd-fast pool", 2
MANIFEST, COPY = "manifest.json", "manifest.copy.json"


class ManifestError(UserError):
    """A manifest is not as it was written. `verify --repair` takes its copy, if that is whole."""


@dataclass
class Manifest:
    """What the files of a pool hold: records at positions `first` to `count`, less those of the dropped blocks."""

    layout: Layout
    first: int = 0
    """position of the first record that is kept, the start of a segment"""
    count: int = 0
    """position behind the last record"""
    dropped: list[int] = field(default_factory=list)
    """blocks (position // BLOCK) that a repair gave up, ascending"""
    checksums: dict[str, array[int]] = field(default_factory=dict)
    """by field, the CRC-32 of each block from `first` on; the last block's as far as it is filled"""

    def __post_init__(self) -> None:
        for name in self.layout.fields:
            self.checksums.setdefault(name, array("I"))

    def checksum(self, name: str, block: int) -> int:
        """The CRC-32 of a field's block."""
        return self.checksums[name][block - self.first // BLOCK]

    def live(self, position: int) -> int:
        """How many records before `position` are not dropped: the index of the record there, counted without gaps."""
        return position - BLOCK * bisect_left(self.dropped, -(-position // BLOCK))

    def positions(self, indices: Tensor) -> Tensor:
        """The inverse of `live`: positions of the records with these indices, int64."""
        if not self.dropped:
            return indices
        dropped = torch.tensor(self.dropped)
        behind = (dropped - torch.arange(len(dropped))) * BLOCK  # index of the first record behind each dropped block
        return indices + BLOCK * torch.searchsorted(behind, indices, right=True)

    def extend(self, name: str, position: int, payload: memoryview) -> None:
        """Carry a field's checksum on over the records from `position` on, all of one block."""
        known, index = self.checksums[name], position // BLOCK - self.first // BLOCK
        if index == len(known):
            known.append(0)
        known[index] = zlib.crc32(payload, known[index])

    def forget_after(self, count: int) -> None:
        """Drop all records from position `count` on; the checksum of a block that is cut is left to the caller."""
        self.count = count
        self.dropped = [block for block in self.dropped if block * BLOCK < count]
        blocks = -(-(count - self.first) // BLOCK)
        for known in self.checksums.values():
            del known[blocks:]

    def forget_before(self, first: int) -> None:
        """Drop all records before position `first`, the start of a segment."""
        for known in self.checksums.values():
            del known[: (first - self.first) // BLOCK]
        self.dropped = [block for block in self.dropped if block * BLOCK >= first]
        self.first = first

    def save(self, folder: Path) -> None:
        """Replace the folder's manifest, then its copy, each all or nothing: one of them is whole at any moment."""
        body = self._body()
        table = {"version": VERSION, **body}
        text = json.dumps({"magic": MAGIC, "crc": crc_of_json(table), **table}, indent=1)
        for name in (MANIFEST, COPY):
            write_file(folder / name, text)

    def _body(self) -> dict[str, Any]:
        return {
            "fields": {name: [field.dtype, list(field.shape)] for name, field in self.layout.fields.items()},
            "segment": self.layout.records,
            "block": BLOCK,
            "first": self.first,
            "count": self.count,
            "dropped": self.dropped,
            "checksums": {name: known.tobytes().hex() for name, known in self.checksums.items()},
        }


def load_manifest(folder: Path, name: str = MANIFEST) -> Manifest:
    """Read and check a folder's manifest. Raises UserError that names the file and says what to do, and its kind
    ManifestError where there was one.
    """
    file = folder / name
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / COPY).exists():
            raise _damaged(file, "is missing") from None
        raise UserError(f"pool {folder}: no pool there (it has no {name}); name the folder `pool` of a run") from None
    except OSError as error:
        raise UserError(f"pool {file}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise _damaged(file, "damaged (it is not JSON)") from None
    if not isinstance(table, dict) or table.pop("magic", None) != MAGIC:
        raise _damaged(file, "not a pool's manifest")
    version = table.get("version")
    if version == 1:  # whose checksum leaves the version out
        del table["version"]
    if table.pop("crc", None) != crc_of_json(table):  # first: what it says of its version may be the damage
        raise _damaged(file, "damaged (its checksum does not fit)")
    if version not in (1, VERSION):
        raise UserError(
            f"pool {file}: version {version}, this program reads up to {VERSION}; use the one that wrote it"
        )
    if table["block"] != BLOCK:
        raise _damaged(file, f"damaged (blocks of {table['block']})")
    fields = {name: Field(dtype, tuple(shape)) for name, (dtype, shape) in table["fields"].items()}
    checksums = {name: array("I", bytes.fromhex(known)) for name, known in table["checksums"].items()}
    layout = Layout(fields, table["segment"])
    return Manifest(layout, table["first"], table["count"], table["dropped"], checksums)


def repair_hint(folder: Path) -> str:
    """What to do about damage."""
    return f"`{command('pool', 'verify', '--repair', folder)}` drops what is damaged"


def _damaged(file: Path, why: str) -> ManifestError:
    has_copy = file.name == MANIFEST and (file.parent / COPY).exists()
    command = f"`dfkd-fast pool verify --repair {file.parent}`"
    what_to_do = f"{command} takes its copy" if has_copy else "no copy is whole, and without one the pool is lost"
    return ManifestError(f"pool {file}: {why}; {what_to_do}")


def lock_folder(folder: Path) -> int:
    """Lock a pool's folder for writing; returns the handle that holds the lock until it is closed.

    Raises UserError when another writer has it.
    """
    return lock_file(folder / "lock", "pool", "is writing to this pool; let it end, or stop it")
