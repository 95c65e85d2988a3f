"""Several ranks: their epochs together are every image once, resume is exact, other numbers of ranks share out anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.disk.shards import shard_folder
from dfkd_fast.pool.pool import Pool
from dfkd_fast.pool.stream import AugmentSpec
from dfkd_fast.rng import seed_phase
from dfkd_fast.sampling import EpochShuffle

INFO = ModelInfo(name="cnn", num_classes=7, image_size=4, mean=(0.0,) * 3, std=(1.0,) * 3)
VIEW = AugmentSpec(info=INFO, pad=1, flip=True)
PER_RANK, PER_BATCH = 24, 6


class Alone(Runtime):
    """One rank of several, without the others: a sum over ranks is the rank's own."""

    def all_reduce(self, value: torch.Tensor) -> torch.Tensor:
        return value


def make_pool(root: Path, rank: int, world_size: int, runtime: type[Runtime] = Alone, **options: Any) -> Pool:
    cpu = runtime(device=torch.device("cpu"), precision="fp32", channels_last=True, rank=rank, world_size=world_size)
    journal = Journal(shard_folder(root, rank, world_size), capacity=2000, replace=True)
    return Pool(2000, (3, 4, 4), runtime=cpu, num_classes=7, journal=journal, **options)


def pixels(labels: torch.Tensor) -> torch.Tensor:
    return labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3)


def fill(root: Path, world_size: int, each: int, storage: str = "device") -> dict[str, Any]:
    """Every rank adds its own images, whose extra says which they are; what a checkpoint would record."""
    counts = []
    for rank in range(world_size):
        pool = make_pool(root, rank, world_size, storage=storage)
        numbers = torch.arange(each + rank) * world_size + rank
        pool.add_bytes(pixels(numbers % 200), numbers % 7, number=numbers)
        counts.append(pool.flush()["shards"][rank])
        pool.close()
    return {"shards": counts}


@pytest.mark.parametrize("storage", ["device", "mmap"])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_another_number_of_ranks_shares_out_every_image_once(
    tmp_path: Path, before: int, after: int, storage: str
) -> None:
    manifest = fill(tmp_path, before, 600, storage)
    total, seen, sizes = sum(manifest["shards"]), [], []
    pools = [make_pool(tmp_path, rank, after, storage=storage) for rank in range(after)]
    for pool in pools:
        assert f"written by {before} ranks, shared out anew among {after}" in pool.restore(manifest)
        slots = torch.arange(len(pool))
        batch = pool.read(slots, AugmentSpec(info=INFO, pad=0, flip=False))
        assert torch.equal(batch.labels, batch.extras["number"] % 7)
        assert torch.equal(pool.pixels(slots), pixels(batch.extras["number"] % 200))
        seen += batch.extras["number"].tolist()
        sizes.append(len(pool))
    assert len(seen) == len(set(seen)) == total
    assert max(sizes) - min(sizes) <= 1
    assert {"shards": [pool.flush()["shards"][rank] for rank, pool in enumerate(pools)]} == {"shards": sizes}
    for pool in pools:
        pool.release({"shards": sizes})
        pool.close()
    kept = {path.name for path in tmp_path.iterdir()} - {"lock"}
    assert kept == ({f"rank-{rank}-of-{after}" for rank in range(after)} if after > 1 else kept)
    assert (tmp_path / "manifest.json").exists() == (after == 1)
    assert not [name for name in kept if name.endswith(f"-of-{before}")]


def run_rank(rank: int, world_size: int, root: Path, port: int) -> None:
    """What each process of the test below does."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    pool = make_pool(root, rank, world_size, Runtime)
    labels = torch.arange(PER_RANK) * world_size + rank
    pool.add_bytes(pixels(labels), labels % 7, number=labels)
    manifest = pool.flush()
    assert manifest == {"shards": [PER_RANK] * world_size}
    everything = torch.arange(PER_RANK * world_size)
    assert torch.equal(pool.global_class_counts(), (everything % 7).bincount(minlength=7))

    def epoch(pool: Pool) -> list[torch.Tensor]:
        seed_phase(0, rank, 0, "distillation")
        batches = pool.batches(EpochShuffle(len(pool), PER_BATCH), VIEW, PER_RANK // PER_BATCH)
        return [part for batch in batches for part in (batch.images, batch.extras["number"])]

    first = epoch(pool)
    mine = torch.cat(first[1::2])
    union = [torch.empty_like(mine) for _ in range(world_size)]
    torch.distributed.all_gather(union, mine)
    assert torch.equal(torch.cat(union).sort().values, everything)
    pool.add_bytes(pixels(labels[:5]), labels[:5] % 7, number=labels[:5])
    pool.flush()
    pool.close()
    again = make_pool(root, rank, world_size, Runtime)
    assert again.restore(manifest) == ""
    assert all(torch.equal(a, b) for a, b in zip(epoch(again), first, strict=True))
    again.close()
    torch.distributed.destroy_process_group()


def test_two_ranks(tmp_path: Path) -> None:
    port = 20_000 + os.getpid() % 20_000
    torch.multiprocessing.spawn(run_rank, args=(2, tmp_path, port), nprocs=2)
