"""The pool: what goes in comes out, in the right slot, as the same pixels, and survives the process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.pool.journal import Journal
from dfkd_fast.pool.pool import Pool, View
from dfkd_fast.runtime import Runtime

CPU = Runtime(device=torch.device("cpu"), precision="fp32", channels_last=True)
INFO = ModelInfo(name="cnn", num_classes=10, image_size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
PLAIN = View(info=INFO, pad=0, flip=False)


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def make_pool(capacity: int = 20, **options: object) -> Pool:
    return Pool(capacity, (3, 8, 8), runtime=CPU, **options)  # type: ignore[arg-type]


def test_read_gives_back_what_was_added() -> None:
    pool = make_pool()
    first, second = images(5), images(7, seed=1)
    assert pool.add(first, torch.arange(5)).tolist() == list(range(5))
    assert pool.add(second, torch.arange(7)).tolist() == list(range(5, 12))
    batch = pool.read(torch.tensor([11, 0, 0, 6]), PLAIN)
    expected = torch.stack([second[6], first[0], first[0], second[1]])
    torch.testing.assert_close(batch.images, expected, rtol=0, atol=0.5 / 255 + 1e-6)
    assert batch.labels.tolist() == [6, 0, 0, 1]
    assert len(pool) == 12


@pytest.mark.parametrize(("quantize", "expected"), [("round", [0, 0, 1, 255, 255]), ("truncate", [0, 0, 0, 255, 255])])
def test_quantization(quantize: str, expected: list[int]) -> None:
    pool = make_pool(quantize=quantize)
    values = torch.tensor([-0.3, 0.4, 0.9, 255.0, 300.0]) / 255
    pool.add(values.view(5, 1, 1, 1).expand(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64))
    assert pool.newest(5)[0][:, 0, 0, 0].tolist() == expected


def test_images_that_are_not_finite_never_enter() -> None:
    pool, bad = make_pool(), images(2)
    bad[1, 2, 3, 4] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        pool.add(bad, torch.zeros(2, dtype=torch.int64))
    assert len(pool) == 0


def test_append_stops_at_the_capacity() -> None:
    pool = make_pool(6)
    pool.add(images(4), torch.arange(4))
    with pytest.raises(ValueError, match="capacity of 6"):
        pool.add(images(3), torch.arange(3))


def test_a_ring_keeps_the_newest() -> None:
    pool = make_pool(5, policy="ring")
    for round_ in range(4):
        pool.add(images(2, seed=round_), torch.full((2,), round_))
    assert pool.add(images(1, seed=9), torch.full((1,), 9)).tolist() == [3]
    assert len(pool) == 5
    assert pool.newest(5)[1].tolist() == [2, 2, 3, 3, 9]
    assert pool.read(torch.arange(5), PLAIN).labels.tolist() == [2, 3, 3, 9, 2]


@pytest.mark.parametrize("policy", ["append", "ring"])
def test_restore_takes_up_what_the_checkpoint_recorded(tmp_path: Path, policy: str) -> None:
    pool = make_pool(8, policy=policy, journal=Journal(tmp_path / "pool"))
    for round_ in range(2 if policy == "append" else 5):
        pool.add(images(3, seed=round_), torch.full((3,), round_), score=torch.rand(3, 2))
    manifest, before = pool.flush(), pool.read(torch.arange(len(pool)), PLAIN)
    pool.add(images(2, seed=99), torch.full((2,), 99), score=torch.rand(2, 2))
    again = make_pool(8, policy=policy, journal=Journal(tmp_path / "pool"))
    again.restore(manifest)
    after = again.read(torch.arange(len(again)), PLAIN)
    assert torch.equal(after.images, before.images)
    assert torch.equal(after.labels, before.labels)
    assert torch.equal(after.extras["score"], before.extras["score"])
    assert again.written == manifest["count"]
