"""Pools whose records say where they were written, for the tests of the files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.disk.layout import GRAIN


def records(first: int, count: int) -> dict[str, Tensor]:
    return contents(torch.arange(first, first + count))


def contents(positions: Tensor) -> dict[str, Tensor]:
    """Records whose content says where they were written."""
    images = (positions[:, None, None, None] * 7 + torch.arange(12).view(2, 2, 3)).to(torch.uint8)
    return {"images": images, "labels": positions, "score": positions[:, None] / torch.tensor([2.0, 3.0])}


@contextmanager
def journal(folder: Path, *, capacity: int = 10 * GRAIN, replace: bool = False) -> Iterator[Journal]:
    made = Journal(folder, capacity=capacity, replace=replace)
    try:
        yield made
    finally:
        made.close()


def write(folder: Path, count: int, batch: int = 1000, capacity: int = 10 * GRAIN) -> int:
    """A pool of `count` records, flushed once."""
    with journal(folder, capacity=capacity) as made:
        for first in range(0, count, batch):
            made.append(records(first, min(batch, count - first)))
        return made.flush()


def held(folder: Path, start: int = 0, stop: int = 1 << 40) -> list[int]:
    """Labels of all records, each record checked against what was written."""
    labels: list[int] = []
    for index, fields in PoolFiles(folder).read(start, stop):
        assert index == start + len(labels)
        labels += fields["labels"].tolist()
        for name, values in contents(fields["labels"]).items():
            assert torch.equal(fields[name], values), name
    return labels
