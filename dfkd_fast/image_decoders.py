"""Decoding the image files of a split in any order: what reads them, and Pillow in threads."""

from __future__ import annotations

import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from dfkd_fast.image_files import ImageFiles, fitted
from dfkd_fast.pictures import Channels, PictureReader

T = TypeVar("T")

_AHEAD = 2  # batches whose files are read, and by Pillow decoded, before they are asked for


class Decoder(Protocol):
    """Decodes the files of one split, in any order."""

    def batches(self, rows: range, batch_size: int) -> Iterator[Tensor]:
        """Images (B, S, S, C) uint8 of the files at `rows`; the last batch may be smaller."""


class PilDecoder:
    """Threads that decode with Pillow, which lets go of the interpreter meanwhile."""

    def __init__(
        self,
        reader: FileReader,
        image_size: int,
        resize: int | None,
        *,
        channels: Channels = 3,
        workers: int,
        flag: str,
    ) -> None:
        self.reader, self.image_size, self.resize = reader, image_size, resize
        self.pictures, self.workers, self.flag = PictureReader(channels), workers, flag

    def batches(self, rows: range, batch_size: int) -> Iterator[Tensor]:
        for images in in_threads(self._decode, rows, batch_size, self.workers):
            yield torch.from_numpy(np.stack(images))
        self.pictures.report(f"{self.flag} {self.reader.files.source}")

    def _decode(self, index: int) -> np.ndarray:
        image = self.pictures.read(self.reader.read(index), self.reader.files.describe(index, self.flag))
        return fitted(image, self.image_size, self.resize)


class FileReader:
    """Files of a split in any order, out of a folder or an uncompressed tar."""

    def __init__(self, files: ImageFiles, offsets: dict[str, tuple[int, int]] | None) -> None:
        self.files, self._offsets = files, offsets
        self._tar = None if offsets is None else os.open(files.source, os.O_RDONLY)

    @classmethod
    def open(cls, files: ImageFiles) -> FileReader | None:
        """None for a compressed tar, which can only be read from front to back."""
        if files.source.is_dir():
            return cls(files, None)
        try:
            with tarfile.open(files.source, "r:") as tar:
                return cls(files, {member.name: (member.offset_data, member.size) for member in tar if member.isfile()})
        except tarfile.ReadError:
            return None

    def read(self, index: int) -> bytes:
        """The content of the file at `index`."""
        name = self.files.names[index]
        if self._offsets is None or self._tar is None:
            return Path(self.files.source, name).read_bytes()
        offset, size = self._offsets[name]
        return os.pread(self._tar, size, offset)

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
