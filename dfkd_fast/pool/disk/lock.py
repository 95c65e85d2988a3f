"""One writer per pool."""

from __future__ import annotations

from pathlib import Path

from dfkd_fast.files.locks import lock_file


def lock_folder(folder: Path) -> int:
    """Lock a pool's folder for writing; returns the handle that holds the lock until it is closed.

    Raises UserError when another writer has it.
    """
    return lock_file(folder / "lock", "pool", "is writing to this pool; let it end, or stop it")
