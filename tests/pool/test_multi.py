"""Several resolutions in one pool."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.pool.pool import Pool
from dfkd_fast.pool.stream import AugmentSpec
from dfkd_fast.sampling import EpochShuffle

CPU = Runtime(device=torch.device("cpu"), precision="fp32", channels_last=True)
INFO = ModelInfo(name="cnn", num_classes=10, image_size=16, mean=(0.0,) * 3, std=(1.0,) * 3)
WIDE = ImageSize(8, 16)
SIZES = {ImageSize.of(12): 5, ImageSize.of(16): 3, WIDE: 2}
"""image size -> mini-batch"""


def make(folder: Path) -> MultiPool:
    return MultiPool(
        {size: Pool(40, (3, *size), runtime=CPU, journal=Journal(folder / str(size), capacity=40)) for size in SIZES}
    )


def epoch(pool: MultiPool, steps: int = 6) -> list[torch.Tensor]:
    samplers = {size: EpochShuffle(len(pool[size]), batch, seed=size.area) for size, batch in SIZES.items()}
    views = {size: AugmentSpec(info=INFO, pad=1, flip=True) for size in SIZES}
    torch.manual_seed(1)
    return [batch.images for step in pool.batches(samplers, views, steps) for batch in step.values()]


def test_a_step_has_a_batch_of_each_resolution_and_resume_is_exact(tmp_path: Path) -> None:
    pool = make(tmp_path)
    for size in SIZES:
        pool[size].add(torch.rand(20, 3, *size), torch.arange(20))
    expected, manifest = epoch(pool), pool.flush()
    assert [tuple(images.shape) for images in expected[:3]] == [(5, 3, 12, 12), (3, 3, 16, 16), (2, 3, 8, 16)]
    assert len(expected) == 18
    assert sorted(manifest) == ["12", "16", "8x16"]
    pool[ImageSize.of(12)].add(torch.rand(4, 3, 12, 12), torch.arange(4))
    assert len(pool) == 64
    pool.close()
    again = make(tmp_path)
    assert again.restore(manifest) == ""
    assert len(again) == 60
    for found, images in zip(epoch(again), expected, strict=True):
        assert torch.equal(found, images)
    again.release(manifest)
    again.close()


def test_a_pool_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="the one of size 12"):
        MultiPool({ImageSize.of(12): Pool(4, (3, 16, 16), runtime=CPU)})
