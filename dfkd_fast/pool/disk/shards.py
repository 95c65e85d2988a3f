"""A pool over several ranks: each keeps, samples and writes its own part."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dfkd_fast.files.write import drop_folder, sweep
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.disk.manifest import MANIFEST


def shard_folder(root: Path, rank: int, world_size: int) -> Path:
    """Where a rank's part of the pool in `root` lies; `root` itself where there is one rank."""
    return root if world_size == 1 else root / f"rank-{rank}-of-{world_size}"


def pools_in(folder: Path) -> list[Path]:
    """The pools of a folder: itself, a run's `pool`, or one for each rank or resolution below; none: []."""
    for place in (folder / "pool", folder):
        for pattern in ("", "*/", "*/*/"):
            found = {path.parent for path in place.glob(f"{pattern}manifest*.json")}
            if found:
                return sorted(found)
    return []


def redistribute(root: Path, counts: Sequence[int], rank: int, world_size: int) -> Iterator[dict[str, Tensor]]:
    """The fields of the images that `rank` of `world_size` gets of a pool that was written by `len(counts)` ranks.

    The images are dealt out one by one in about the order of their making, so that every rank gets as many (to one) and
    every image goes to one rank. `counts` are what the shards' journals held (`Journal.flush`).
    """
    shards = [PoolFiles(shard_folder(root, old, len(counts))) for old in range(len(counts))]
    blocks = [
        files.read(files.manifest.live(files.manifest.first), files.manifest.live(count))
        for files, count in zip(shards, counts, strict=True)
    ]
    dealt = 0
    for row in itertools.zip_longest(*blocks):
        for _, fields in filter(None, row):
            numbers = torch.arange(dealt, dealt + len(fields["labels"]))
            dealt += len(numbers)
            mine = numbers % world_size == rank
            yield {name: values[mine] for name, values in fields.items()}


def drop_other_shards(root: Path, world_size: int) -> None:
    """Delete what another number of ranks has written in `root`, and what a kill has left of that. Raises OSError."""
    if world_size > 1:  # where there is one rank, its journal sweeps the folder
        sweep(root)
    for folder in root.glob("rank-*-of-*"):
        if not folder.name.endswith(f"-of-{world_size}"):
            drop_folder(folder)
    if world_size > 1 and (root / MANIFEST).exists():
        (root / MANIFEST).unlink()  # first, so that what is left is no pool
        for file in (*root.glob("segment-*.bin"), *root.glob("manifest.*")):
            file.unlink()
