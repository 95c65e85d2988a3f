"""One writer per pool: an advisory lock that the system releases when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dfkd_fast.errors import UserError


def lock_folder(folder: Path) -> int:
    """Lock a pool's folder for writing; returns the handle that holds the lock until it is closed.

    Raises UserError when another writer has it.
    """
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
        os.close(handle)
        raise UserError(
            f"pool {folder / 'lock'}: process {owner} is writing to this pool; let it end, or stop it"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle
