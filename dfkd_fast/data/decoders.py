"""Decoding the image files of a split in any order: what reads them, and Pillow in threads."""

from __future__ import annotations

import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.data.files import ImageFiles, fitted
from dfkd_fast.errors import UserError
from dfkd_fast.files.archives import InTar, check_size, is_uncompressed_tar, read_zipped
from dfkd_fast.files.pictures import Channels, PictureReader

T = TypeVar("T")

_AHEAD = 2  # batches whose files are read, and by Pillow decoded, before they are asked for


class Decoder(Protocol):
    """Decodes the files of one split, in any order."""

    def batches(self, rows: range, batch_size: int) -> Iterator[Tensor]:
        """Images (B, H, W, C) uint8 of the files at `rows`; the last batch may be smaller."""


class PilDecoder:
    """Threads that decode with Pillow, which lets go of the interpreter meanwhile."""

    def __init__(
        self,
        reader: FileReader,
        image_size: ImageSize,
        resize: int | None,
        interpolation: str,
        *,
        channels: Channels = 3,
        workers: int,
        flag: str,
    ) -> None:
        self.reader, self.image_size, self.resize, self.interpolation = reader, image_size, resize, interpolation
        self.pictures, self.workers, self.flag = PictureReader(channels), workers, flag

    def batches(self, rows: range, batch_size: int) -> Iterator[Tensor]:
        for images in in_threads(self._decode, rows, batch_size, self.workers):
            yield torch.from_numpy(np.stack(images))
        self.pictures.report(f"{self.flag} {self.reader.files.source}")

    def _decode(self, index: int) -> np.ndarray:
        image = self.pictures.read(self.reader.read(index), self.reader.files.describe(index, self.flag))
        return fitted(image, self.image_size, self.resize, self.interpolation)


class FileReader:
    """Files of a split in any order and by several threads, out of a folder, a zip or an uncompressed tar."""

    def __init__(self, files: ImageFiles, flag: str) -> None:
        self.files, self._flag = files, flag
        kind, source = type(files.places[0]), files.source
        self._tar = os.open(source, os.O_RDONLY) if kind is InTar else None
        self._zip = zipfile.ZipFile(source) if kind is str else None

    @classmethod
    def open(cls, files: ImageFiles, flag: str) -> FileReader | None:
        """None for a compressed tar, which can only be read from front to back."""
        in_any_order = not isinstance(files.places[0], InTar) or is_uncompressed_tar(files.source)
        return cls(files, flag) if in_any_order else None

    def read(self, index: int) -> bytes:
        """The content of the file at `index`. Raises UserError where it cannot be read, or is too large."""
        place, what = self.files.places[index], self.files.describe(index, self._flag)
        try:
            if isinstance(place, Path):
                check_size(place.stat().st_size, what)
                return place.read_bytes()
            if isinstance(place, InTar) and self._tar is not None:
                check_size(place.size, what)
                return os.pread(self._tar, place.size, place.offset)
            assert self._zip is not None
            return read_zipped(self._zip, str(place), what)
        except UserError:
            raise
        except Exception as error:  # damaged archives make their readers fail in any way
            raise UserError(f"{what} cannot be read ({error})") from error

    def __del__(self) -> None:
        if self._tar is not None:
            os.close(self._tar)


def in_threads(function: Callable[[int], T], rows: range, batch_size: int, workers: int) -> Iterator[list[T]]:
    """`function` of each row, a batch at a time, in order; `workers` threads are some batches ahead."""
    pool, waiting = ThreadPoolExecutor(workers, "decode"), deque[list[Future[T]]]()
    try:
        for start in range(0, len(rows), batch_size):
            waiting.append([pool.submit(function, row) for row in rows[start : start + batch_size]])
            if len(waiting) > _AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)
