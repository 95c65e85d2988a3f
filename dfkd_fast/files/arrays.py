"""Arrays in .npz files, read row by row: an array is as large as its file says, or refused before any of it is read.

`numpy.load` reads arrays whole and trusts what a header claims.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfkd_fast.errors import UserError
from dfkd_fast.files.archives import FREE_BYTES, MAX_RATIO
from dfkd_fast.messages.notes import printable

_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LARGEST = 8  # bytes of a number


def are_images(shape: Sequence[int]) -> bool:
    """Whether (N, H, W) or (N, H, W, C): grey, RGB, or fewer channels than pixels a side, unlike (N, C, H, W)."""
    if len(shape) not in (3, 4) or 0 in shape:
        return False
    return all(channels in (1, 3) or channels < min(shape[1:3]) for channels in shape[3:])


class NpzFile:
    """The arrays of a .npz file, by name. Raises UserError, beginning with `what`, for whatever is wrong with it."""

    def __init__(self, path: Path, what: str) -> None:
        self._what = what
        self._columns: dict[str, _Column] = {}
        with self._explained():
            self._archive = zipfile.ZipFile(path)
            for info in self._archive.infolist():
                if info.filename.endswith(".npy"):
                    name = printable(info.filename.removesuffix(".npy"))
                    self._columns[name] = _Column(self._archive, info, name)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each array."""
        return {name: column.shape for name, column in self._columns.items()}

    def next_rows(self, name: str, count: int) -> np.ndarray:
        """The next `count` rows of an array, or as many as are left, as contiguous numbers of this machine's order."""
        with self._explained():
            return self._columns[name].next_rows(count)

    def whole(self, name: str) -> np.ndarray:
        """All rows that were not read yet."""
        return self.next_rows(name, self._columns[name].shape[0])

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # damaged archives make their readers fail in any way
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"{self._what}: cannot be read ({printable(reason)})") from error


class _Column:
    """One array, from its first row to its last."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> None:
        self._file = archive.open(info)
        version = np.lib.format.read_magic(self._file)
        if version not in _HEADERS:
            raise ValueError(f"`{name}` is in version {version} of the format")
        self.shape, self._by_columns, self._dtype = _HEADERS[version](self._file)
        if self._dtype.kind not in "biuf" or self._dtype.itemsize > _LARGEST or not self.shape:
            raise ValueError(f"`{name}` is {self._dtype} {list(self.shape)}; expected rows of numbers")
        claimed, held = math.prod(self.shape) * self._dtype.itemsize, info.file_size - self._file.tell()
        if min(self.shape) < 0 or claimed != held:
            raise ValueError(f"`{name}` claims {list(self.shape)} of {self._dtype}, and holds {held:,} bytes")
        limit = max(FREE_BYTES, MAX_RATIO * info.compress_size)
        if held > limit:
            raise ValueError(f"`{name}` claims more than {limit:,} bytes, {MAX_RATIO} times what it has")
        self._done = 0
        self._all: np.ndarray | None = None

    def next_rows(self, count: int) -> np.ndarray:
        count = min(count, self.shape[0] - self._done)
        if self._by_columns and len(self.shape) > 1:
            if self._all is None:
                everything = np.frombuffer(self._file.read(), self._dtype)
                self._all = everything.reshape(self.shape, order="F")
            rows = self._all[self._done : self._done + count]
        else:
            size = count * math.prod(self.shape[1:]) * self._dtype.itemsize
            content = self._file.read(size)
            if len(content) != size:
                raise EOFError("it ends early")
            rows = np.frombuffer(content, self._dtype).reshape(count, *self.shape[1:])
        self._done += count
        return rows.astype(self._dtype.newbyteorder("="), order="C")
