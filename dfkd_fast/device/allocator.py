"""The C library's allocator, told to keep what it has. Imports no torch."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse memory instead of returning it; False where there is no glibc.

    By default every tensor above 32 MiB is mapped anew and returned when it is freed, and the page faults take several
    times as long as the operation that fills it: a batch of 256 images of 112 px is above.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
