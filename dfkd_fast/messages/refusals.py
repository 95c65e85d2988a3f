"""One-line messages for the machine's refusals: a file that cannot be read or written, memory that is not there.

The last resort of a command line, behind the errors that name a flag. Imports no torch.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

from dfkd_fast.errors import UserError
from dfkd_fast.messages.terminal import quoted

_NO_MEMORY = (
    "can't allocate memory",  # the CPU's allocator
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
    "Storage size calculation overflowed",  # more bytes than 64 bits count
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ASKED = re.compile(r"tried to allocate (\d+) bytes")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left. The CPU's allocator has no exception of its own."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def refusal(error: BaseException) -> str | None:
    """What to say of an error that is neither a user's mistake nor a bug; None where it may be a bug.

    A file system's refusal names its file; a plain OSError without one stays what it is.
    """
    if is_out_of_memory(error):
        asked = _ASKED.search(str(error))
        size = f" (asked for {int(asked[1]) / 1e9:,.2f} GB at once)" if asked else ""
        return f"out of memory{size}; choose a smaller batch, smaller images, or a machine with more of it"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        second = f" -> {error.filename2}" if error.filename2 is not None else ""
        return f"{error.filename}{second}: {error.strerror.lower()}"
    return None


def disk_error(error: Exception, folder: Path, *, flag: str = "--run-dir", go_on: str | None = None) -> Exception:
    """What the system refused, worded for the user; an error that is none of files as it is.

    `folder`: of the run, or what `flag` named; `go_on`: what to do then, by default to resume the run.
    """
    if not isinstance(error, OSError) or error.errno is None or isinstance(error, ConnectionError | ChildProcessError):
        return error
    what = os.strerror(error.errno) + (f": {error.filename}" if error.filename else "")
    if error.errno in _FULL:
        why, fix = f"no room to write ({what})", "free space"
    else:
        why, fix = f"the system refused a file ({what})", "fix that"
    then = go_on or f"--resume {quoted(folder)}"
    return UserError(f"{flag} {folder}: {why}; the last checkpoint is whole: {fix}, then {then}")
