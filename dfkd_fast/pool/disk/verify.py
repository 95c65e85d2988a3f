"""Checking a pool on disk, and giving up what is damaged so that the rest can be used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dfkd_fast.errors import UserError
from dfkd_fast.pool.disk.files import Damage, PoolFiles
from dfkd_fast.pool.disk.layout import BLOCK
from dfkd_fast.pool.disk.manifest import COPY, MANIFEST, ManifestError, load_manifest, lock_folder


class Repair(NamedTuple):
    """What a repair has done."""

    damage: list[Damage]
    """the blocks that were dropped"""
    from_copy: bool
    """the manifest itself was damaged: its copy was taken"""

    @property
    def images(self) -> int:
        """Images that were dropped."""
        return sum(found.images for found in self.damage)


def find_damage(folder: Path) -> list[Damage]:
    """Every block of the pool in `folder` that does not hold what was written. Reads all of it."""
    suspects = {found.block for found in PoolFiles(folder).damage()}
    # a writer may have dropped them meanwhile: what its manifest no longer speaks of is not damaged but gone
    return list(PoolFiles(folder).damage(suspects)) if suspects else []


def repair(folder: Path) -> Repair:
    """Drop the damaged blocks, and nothing else, from the manifest. Segment files get their full length again.

    A checkpoint of before can still be resumed, with fewer images. Raises UserError while the pool is being written to,
    for one that another version of this program wrote, where neither its manifest nor the copy of it is whole, and
    where it cannot be written.
    """
    try:
        handle = lock_folder(folder)
    except OSError as error:
        raise _not_repaired(error, folder) from error
    try:
        from_copy = not _is_whole(folder)
        files = PoolFiles(folder, load_manifest(folder, COPY if from_copy else MANIFEST))
        manifest, damage = files.manifest, list(files.damage())
        manifest.dropped = sorted({*manifest.dropped, *(found.block for found in damage)})
        if manifest.dropped:  # nothing is added to a dropped block
            manifest.count = max(manifest.count, (manifest.dropped[-1] + 1) * BLOCK)
        for file in {found.file for found in damage}:
            _fill_up(file, manifest.layout.segment_bytes)
        if damage or from_copy:
            manifest.save(folder)
        return Repair(damage, from_copy)
    except OSError as error:
        raise _not_repaired(error, folder) from error
    finally:
        os.close(handle)


def merge_damage(damage: Sequence[Damage]) -> list[Damage]:
    """Neighbours of one file that suffer alike as one: a file that is gone is one thing to say, not hundreds."""
    merged: list[Damage] = []
    for found in damage:
        last = merged[-1] if merged else None
        if last is not None and (last.file, last.why, last.end) == (found.file, found.why, found.block * BLOCK):
            merged[-1] = last._replace(images=last.images + found.images)
        else:
            merged.append(found)
    return merged


def _is_whole(folder: Path) -> bool:
    try:
        load_manifest(folder)
    except ManifestError:
        if not (folder / COPY).exists():
            raise
        return False
    return True


def _not_repaired(error: OSError, folder: Path) -> UserError:
    what = f"{error.filename or folder}: {error.strerror}"
    return UserError(f"pool {folder}: cannot be repaired ({what}); make it writable, or repair a copy of it")


def _fill_up(file: Path, size: int) -> None:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.posix_fallocate(handle, 0, size)
    finally:
        os.close(handle)
