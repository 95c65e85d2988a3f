"""Decoded images in one file, read row by row: of a set of any size a batch is in memory.

Rows are read, not mapped: pages of a mapping count as the process's own memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfkd_fast.errors import UserError


class ImageRows:
    """Images (N, H, W, C) uint8, one after another in a file that nobody writes any more."""

    def __init__(self, path: Path, shape: tuple[int, ...], *, of: range | None = None) -> None:
        """`of`: which of the file's rows these are, by default all. Raises OSError."""
        self.path, self._of = path, range(shape[0]) if of is None else of
        self.shape = (len(self._of), *shape[1:])
        self._whole, self._file = shape, open(path, "rb", buffering=0)  # noqa: SIM115 - as long as this lives

    def __len__(self) -> int:
        return len(self._of)

    def part(self, rows: range) -> ImageRows:
        """Those at `rows` of these."""
        return ImageRows(self.path, self._whole, of=self._of[rows.start : rows.stop : rows.step])

    def read(self, rows: Sequence[int]) -> Tensor:
        """(B, H, W, C) uint8 on the host. Raises UserError where the file has been cut off."""
        pixels = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        size = prod(self.shape[1:])
        for place, row in zip(pixels, rows, strict=True):
            if os.preadv(self._file.fileno(), [place.data], self._of[row] * size) != size:
                raise UserError(f"{self.path}: ends before row {self._of[row]}; delete it, and it is made anew")
        return torch.from_numpy(pixels)

    def chunks(self, nbytes: int = 2**22) -> Iterator[Tensor]:
        """All of them in their order, about `nbytes` at once."""
        count = max(1, nbytes // prod(self.shape[1:]))
        for first in range(0, len(self), count):
            yield self.read(range(first, min(first + count, len(self))))
