"""The C library's allocator, told to keep what it has. Imports no torch."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
KEEPING = "dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always"
"""MALLOC_CONF with which jemalloc keeps what is freed, in large pages; as it comes it makes steps slower"""
_OTHERS = ("jemalloc", "tcmalloc", "mimalloc")
"""allocators that people preload"""


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse memory instead of returning it; False where there is no glibc.

    By default every tensor above 32 MiB is mapped anew and returned when it is freed, and the page faults take several
    times as long as the operation that fills it: a batch of 256 images of 112 px is above.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def unused_jemalloc() -> str:
    """File name of jemalloc where it is installed and no other allocator than the C library's is in use; else ""."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or preloaded_allocator(maps.read_text(encoding="utf-8", errors="replace")):
        return ""
    return ctypes.util.find_library("jemalloc") or ""


def preloaded_allocator(maps: str) -> str:
    """Which allocator is mapped into a process, by Linux's list of its files; "" for the C library's own."""
    files = [line.rpartition("/")[2] for line in maps.splitlines() if "/" in line]
    return next((name for name in _OTHERS if any(file.startswith(f"lib{name}") for file in files)), "")
