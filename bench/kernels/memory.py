"""Keep freed memory in the process, as a training process should."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse memory instead of returning it; False where there is no glibc.

    By default every tensor above 32 MiB is mapped anew and returned when it is freed, and the kernel's page faults
    then take ten times as long as the operator that writes it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
