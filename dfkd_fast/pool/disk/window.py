"""Many files as one range of addresses, so that one gather can read a batch from all of them."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from dfkd_fast.errors import UserError

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_POPULATE_READ = 22  # madvise, Linux 5.14
_FAILED = ctypes.c_void_p(-1).value

LARGE_PAGE = 2 << 20
"""bytes of a page of the next size on x86-64 and Arm: a random image in one costs a shorter walk through the tables"""
STEP = 4 * LARGE_PAGE
"""bytes asked of the system at a time: it holds a lock meanwhile that other threads' allocations need"""


class Window:
    """A reserved range of `size` bytes into which parts of files are mapped for reading, at any place, again and again.

    Addresses never move: a tensor over the range stays valid while its parts come and go. What no file is mapped to
    reads as zeros. `cached`: the files fit into the page cache, and go there in large pages where kernel and file
    system can. Otherwise the system reads from the disk what is touched and nothing around it: see `fetch`.
    """

    def __init__(self, size: int, *, cached: bool = True) -> None:
        self.size = size
        self._advice = mmap.MADV_HUGEPAGE if cached else mmap.MADV_RANDOM
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        reserved = _mmap(None, size + LARGE_PAGE, flags, -1, 0)
        self.address: int = -(-reserved // LARGE_PAGE) * LARGE_PAGE
        weakref.finalize(self, _libc().munmap, reserved, size + LARGE_PAGE).atexit = False

    def place(self, at: int, file: int, offset: int, size: int) -> None:
        """Map `size` bytes of an open file from `offset` to the bytes from `at`, instead of what was there.

        All three are multiples of the page size. The file may be closed afterwards.
        """
        if offset % mmap.PAGESIZE or size % mmap.PAGESIZE or at % mmap.PAGESIZE:
            raise UserError(
                f"--pool.storage mmap: this machine maps pages of {mmap.PAGESIZE} bytes, the pool was written for "
                "smaller ones; choose device or pinned"
            )
        assert at + size <= self.size
        _mmap(self.address + at, size, mmap.MAP_SHARED | _MAP_FIXED, file, offset)
        self.advise(at, size, self._advice)

    def advise(self, at: int, size: int, advice: int) -> None:
        """Tell the system how `size` bytes from `at`, whole pages, are used. It may not know the advice: no matter."""
        _libc().madvise(self.address + at, size, advice)

    def fetch(self, rows: Sequence[int], nbytes: int) -> None:
        """Start to read these rows of `nbytes` each from the disk, all at once, unless they are cached."""
        for row in rows:
            start = row * nbytes // mmap.PAGESIZE * mmap.PAGESIZE
            self.advise(start, (row + 1) * nbytes - start, mmap.MADV_WILLNEED)

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """The start of the range as a tensor, which keeps it mapped. Writing to it ends the process."""
        memory = (ctypes.c_uint8 * (torch.Size(shape).numel() * dtype.itemsize)).from_address(self.address)
        memory.window = self  # type: ignore[attr-defined]  # the tensor holds on to `memory`, and so to the range
        return torch.frombuffer(memory, dtype=dtype).view(shape)


def fill_page_cache(file: int, size: int) -> None:
    """Let the page cache hold an open file in large pages, where kernel and file system can, before it is written.

    Written piece by piece it would get small ones, and a random image of a pool of 3 GB would cost a fifth more.
    """
    window = Window(size)
    window.place(0, file, 0, size)
    for at in range(0, size, STEP):
        window.advise(at, min(STEP, size - at), _POPULATE_READ)


def _mmap(address: int | None, size: int, flags: int, file: int, offset: int) -> int:
    found = _libc().mmap(address, size, mmap.PROT_READ, flags, file, offset)
    if found == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {size} bytes: {os.strerror(code)}")
    return found


@functools.cache
def _libc() -> ctypes.CDLL:
    # Python's own mmap cannot choose the address
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
