"""Checking a pool on disk, and giving up what is damaged so that the rest can be used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from dfkd_fast.errors import UserError
from dfkd_fast.pool.files import Damage, PoolFiles
from dfkd_fast.pool.layout import BLOCK
from dfkd_fast.pool.lock import lock_folder
from dfkd_fast.pool.manifest import MANIFEST, PREVIOUS, load_manifest


class Repair(NamedTuple):
    """What a repair has done."""

    damage: list[Damage]
    """the blocks that were dropped"""
    older_manifest: bool
    """the manifest itself was damaged: the one before it was taken, without what the last flush added"""

    @property
    def images(self) -> int:
        """Images that were dropped."""
        return sum(found.images for found in self.damage)


def find_damage(folder: Path) -> list[Damage]:
    """Every block of the pool in `folder` that does not hold what was written. Reads all of it."""
    return list(PoolFiles(folder).damage())


def repair(folder: Path) -> Repair:
    """Drop the damaged blocks, and nothing else, from the manifest. Segment files get their full length again.

    A checkpoint of before can still be resumed, with fewer images. Raises UserError while the pool is being written to,
    and when neither its manifest nor the one before it can be read.
    """
    handle = lock_folder(folder)
    try:
        older = not _readable(folder)
        files = PoolFiles(folder, load_manifest(folder, PREVIOUS if older else MANIFEST))
        manifest, damage = files.manifest, list(files.damage())
        manifest.dropped = sorted({*manifest.dropped, *(found.block for found in damage)})
        if manifest.dropped:
            manifest.count = max(
                manifest.count, (manifest.dropped[-1] + 1) * BLOCK
            )  # nothing is added to a dropped block
        for file in {found.file for found in damage}:
            _fill_up(file, manifest.layout.segment_bytes)
        if damage or older:
            manifest.save(folder)
        return Repair(damage, older)
    finally:
        os.close(handle)


def _readable(folder: Path) -> bool:
    try:
        load_manifest(folder)
    except UserError:
        if not (folder / PREVIOUS).exists():
            raise
        return False
    return True


def _fill_up(file: Path, size: int) -> None:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(handle, 0, size)
    finally:
        os.close(handle)
