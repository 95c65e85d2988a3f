"""Many files as one range of addresses, so that one gather can read a batch from all of them."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import weakref

import torch
from torch import Tensor

from dfkd_fast.errors import UserError

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value


class Window:
    """A reserved range of `size` bytes into which parts of files are mapped for reading, at any place, again and again.

    Addresses never move: a tensor over the range stays valid while its parts come and go. What no file is mapped to
    reads as zeros.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self.address = _mmap(None, size, flags, -1, 0)
        weakref.finalize(self, _libc().munmap, self.address, size).atexit = False

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

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """The start of the range as a tensor, which keeps it mapped. Writing to it ends the process."""
        memory = (ctypes.c_uint8 * (torch.Size(shape).numel() * dtype.itemsize)).from_address(self.address)
        memory.window = self  # type: ignore[attr-defined]  # the tensor holds on to `memory`, and so to the range
        return torch.frombuffer(memory, dtype=dtype).view(shape)


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
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
