"""One writer of a folder at a time: an advisory lock that the system releases when its process ends, however it ends.

Linux carries flock over NFS to the server, so that it holds between machines. A file system without locks is said so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from contextlib import suppress
from pathlib import Path

from dfkd_fast.errors import UserError
from dfkd_fast.messages.notes import note


class Busy(UserError):  # noqa: N818 - nothing went wrong
    """Another process has the lock."""


_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def lock_file(file: Path, what: str, otherwise: str) -> int:
    """Lock `file`, making it if need be; returns the handle that holds the lock until it is closed.

    Raises Busy, `what` with the process and host that have it and what to do `otherwise`, and OSError.
    """
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "that has just started"
            os.close(handle)
            raise Busy(f"{what} {file}: process {owner} {otherwise}") from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(handle)
                raise
            note(f"{what} {file}: no locks on this file system ({error.strerror}); start nothing else there")
        if _is_still(handle, file):
            break
        os.close(handle)  # its owner has just deleted it, and another may have made a new one
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
    except OSError:  # no room
        with suppress(OSError):
            file.unlink()
        os.close(handle)
        raise
    return handle


def _is_still(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False
