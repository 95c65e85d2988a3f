"""Several resolutions in one pool, and the budget they share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.pool.budget import data_ratio_capacity, rounds_in_epoch
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.pool.pool import Pool
from dfkd_fast.pool.stream import AugmentSpec
from dfkd_fast.sampling import EpochShuffle

CPU = Runtime(device=torch.device("cpu"), precision="fp32", channels_last=True)
INFO = ModelInfo(name="cnn", num_classes=10, image_size=16, mean=(0.0,) * 3, std=(1.0,) * 3)
SIZES = {12: 5, 16: 3}
"""image size -> mini-batch"""


def make(folder: Path) -> MultiPool:
    return MultiPool(
        {
            size: Pool(40, (3, size, size), runtime=CPU, journal=Journal(folder / str(size), capacity=40))
            for size in SIZES
        }
    )


def epoch(pool: MultiPool, steps: int = 6) -> list[torch.Tensor]:
    samplers = {size: EpochShuffle(len(pool[size]), batch, seed=size) for size, batch in SIZES.items()}
    views = {size: AugmentSpec(info=INFO, pad=1, flip=True) for size in SIZES}
    torch.manual_seed(1)
    return [batch.images for step in pool.batches(samplers, views, steps) for batch in step.values()]


def test_a_step_has_a_batch_of_each_resolution_and_resume_is_exact(tmp_path: Path) -> None:
    pool = make(tmp_path)
    for size in SIZES:
        pool[size].add(torch.rand(20, 3, size, size), torch.arange(20))
    expected, manifest = epoch(pool), pool.flush()
    assert [tuple(images.shape) for images in expected[:2]] == [(5, 3, 12, 12), (3, 3, 16, 16)]
    assert len(expected) == 12
    pool[12].add(torch.rand(4, 3, 12, 12), torch.arange(4))
    assert len(pool) == 44
    pool.close()
    again = make(tmp_path)
    assert again.restore(manifest) == ""
    assert len(again) == 40
    for found, images in zip(epoch(again), expected, strict=True):
        assert torch.equal(found, images)
    again.release(manifest)
    again.close()


def test_a_pool_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="the one of size 12"):
        MultiPool({12: Pool(4, (3, 16, 16), runtime=CPU)})


def test_the_papers_numbers() -> None:
    assert data_ratio_capacity(1_000_000, 0.1, full_size=224, image_size=112) == 400_000
    assert data_ratio_capacity(10_000, 0.01, full_size=224, image_size=96) == 544
    assert data_ratio_capacity(50_000, 1.0, full_size=32, image_size=28) == 65_306


@pytest.mark.parametrize(
    ("capacity", "batch_size", "epochs"), [(400_000, 200, 400), (544, 100, 100), (10, 3, 7), (9, 3, 1)]
)
def test_rounds_are_spread_evenly_and_just_fill_the_pool(capacity: int, batch_size: int, epochs: int) -> None:
    rounds = [
        rounds_in_epoch(epoch, epochs=epochs, capacity=capacity, batch_size=batch_size) for epoch in range(epochs)
    ]
    assert capacity <= sum(rounds) * batch_size < capacity + batch_size
    assert max(rounds) - min(rounds) <= 1
    assert rounds[0] > 0
