"""The layout of records in a pool's files: fields, segments and blocks."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256
"""images under one checksum; what a repair drops at a time"""
GRAIN = max(4096, mmap.PAGESIZE)
"""records of a segment are a multiple of this, so that every field's part of it is whole pages and can be mapped"""
SEGMENT_BYTES = 256 << 20
"""a segment is about this large, unless the whole pool is smaller"""


class Field(NamedTuple):
    """What one slot of the pool holds under one name."""

    dtype: str
    """torch's name, `uint8`"""
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of one record."""
        return torch.Size(self.shape).numel() * self.torch_dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def fields_of(batch: Mapping[str, Tensor]) -> dict[str, Field]:
    """The fields of a batch of (B, ...) tensors."""
    return {
        name: Field(str(value.dtype).removeprefix("torch."), tuple(value.shape[1:])) for name, value in batch.items()
    }


def check_batch(batch: Mapping[str, Tensor], images: Field, known: Mapping[str, Field] | None) -> dict[str, Field]:
    """The fields of a batch for a pool that holds these `images`; `known` are the fields of the batches before it.

    Raises ValueError for images of another shape, for other fields than before, and for one that has not a value for
    each image: assigned to a slice of the pool they would be broadcast.
    """
    found = fields_of(batch)
    if found["images"] != images:
        raise ValueError(f"pool: images of {found['images']}, it holds {images}")
    for name, values in batch.items():
        if len(values) != len(batch["images"]):
            raise ValueError(f"pool: {len(values)} {name} for {len(batch['images'])} images")
    if known is not None and found != dict(known):
        word = [", ".join(f"{name} {field}" for name, field in fields.items()) for fields in (found, known)]
        raise ValueError(f"pool: a batch of {word[0]}; it holds {word[1]}")
    return found


@dataclass(frozen=True)
class Layout:
    """A segment file: for each field in turn, its part of `records` records.

    The record at position p, counted over the whole life of the pool, is record p % records of segment p // records.
    """

    fields: dict[str, Field]
    records: int

    @classmethod
    def for_capacity(cls, fields: dict[str, Field], capacity: int) -> Layout:
        """Segments of about `SEGMENT_BYTES`, or one small segment for a small pool."""
        record = sum(field.nbytes for field in fields.values())
        most, needed = SEGMENT_BYTES // record // GRAIN, -(-capacity // GRAIN)
        return cls(fields, GRAIN * max(1, min(most, needed)))

    @property
    def segment_bytes(self) -> int:
        """Size of a segment file."""
        return self.records * sum(field.nbytes for field in self.fields.values())

    def offset(self, name: str, record: int = 0) -> int:
        """Byte offset of a field's record within a segment."""
        start = 0
        for other, field in self.fields.items():
            if other == name:
                return start + record * field.nbytes
            start += self.records * field.nbytes
        raise KeyError(name)

    def pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The positions [start, stop) cut where a block ends; a segment is a whole number of blocks."""
        cuts = [start, *range(start - start % BLOCK + BLOCK, stop, BLOCK), stop]
        return [(first, last) for first, last in itertools.pairwise(cuts) if first < last]
