"""One-line messages for the machine's refusals: a file that cannot be read or written, memory that is not there.

The last resort of a command line, behind the errors that name a flag. Imports nothing of ours, and no torch.
"""

from __future__ import annotations

import re
import sys

_NO_MEMORY = (
    "can't allocate memory",  # the CPU's allocator
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
    "Storage size calculation overflowed",  # more bytes than 64 bits count
)
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
