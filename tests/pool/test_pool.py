"""The pool: what goes in comes out, in the right slot, as the same pixels, whatever holds and carries it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.pool import Pool
from dfkd_fast.pool.stream import AugmentSpec
from dfkd_fast.rng import seed_phase
from dfkd_fast.sampling import EpochShuffle

CPU = Runtime(device=torch.device("cpu"), precision="fp32", channels_last=True)
INFO = ModelInfo(name="cnn", num_classes=10, image_size=8, mean=(0.49, 0.48, 0.45), std=(0.2, 0.21, 0.26))
VIEW = AugmentSpec(info=INFO, pad=2, flip=True)
PLAIN = AugmentSpec(
    info=ModelInfo(name="cnn", num_classes=10, image_size=8, mean=(0.0,) * 3, std=(1.0,) * 3), pad=0, flip=False
)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@contextmanager
def make_pool(capacity: int = 20, folder: Path | None = None, **options: Any) -> Iterator[Pool]:
    if folder is not None:
        options["journal"] = Journal(folder, capacity=capacity)
    pool = Pool(capacity, (3, 8, 8), runtime=options.pop("runtime", CPU), num_classes=10, **options)
    try:
        yield pool
    finally:
        pool.close()


@pytest.mark.parametrize("storage", ["device", "mmap"])
def test_read_gives_back_what_was_added(tmp_path: Path, storage: str) -> None:
    first, second = images(5), images(7, seed=1)
    with make_pool(folder=tmp_path, storage=storage) as pool:
        assert pool.add(first, torch.arange(5)).tolist() == list(range(5))
        assert pool.add(second, torch.arange(7)).tolist() == list(range(5, 12))
        batch = pool.read(torch.tensor([11, 0, 0, 6]), PLAIN)
        expected = torch.stack([second[6], first[0], first[0], second[1]])
        torch.testing.assert_close(batch.images, expected, rtol=0, atol=0.5 / 255 + 1e-6)
        assert batch.labels.tolist() == [6, 0, 0, 1]
        assert len(pool) == int(pool.size) == 12
        assert pool.class_counts.tolist() == [2, 2, 2, 2, 2, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("quantize", "expected"), [("round", [0, 0, 1, 255, 255]), ("truncate", [0, 0, 0, 255, 255])])
def test_quantization(quantize: str, expected: list[int], channels_last: bool) -> None:
    values = (torch.tensor([-0.3, 0.4, 0.9, 255.0, 300.0]) / 255).view(5, 1, 1, 1).repeat(1, 3, 8, 8)
    values = values.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    with make_pool(quantize=quantize) as pool:
        pool.add(values, torch.zeros(5, dtype=torch.int64))
        assert pool.newest(5)[0][:, 0, 0, 0].tolist() == expected


def test_a_round_is_quantised_as_a_whole_however_it_is_cut() -> None:
    """More values than are scaled at a time."""
    large = torch.rand(700, 3, 20, 20) * 1.2 - 0.1
    pool = Pool(700, (3, 20, 20), runtime=CPU)
    pool.add(large, torch.zeros(700, dtype=torch.int64))
    assert torch.equal(pool.newest(700)[0], (large.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).byte())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_images_that_are_not_finite_never_enter(value: float) -> None:
    bad = images(2)
    bad[1, 2, 3, 4] = value
    with make_pool() as pool:
        with pytest.raises(ValueError, match="not finite"):
            pool.add(bad, torch.zeros(2, dtype=torch.int64))
        assert len(pool) == 0


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"images": torch.zeros(5, 3, 1, 1)}, r"images of uint8 \[1, 1, 3\], it holds uint8 \[8, 8, 3\]"),
        ({"labels": torch.zeros(1, dtype=torch.int64)}, "1 labels for 5 images"),
        ({"labels": torch.zeros(5, 1, dtype=torch.int64)}, r"a batch of .*labels int64 \[1\].*; it holds"),
        ({"score": torch.zeros(5, 1)}, r"score float32 \[1\]; it holds .*score float32 \[2\]"),
        ({"score": torch.zeros(4, 2)}, "4 score for 5 images"),
        ({"logits": torch.zeros(5, 2)}, "a batch of .*logits.*; it holds"),
    ],
)
@pytest.mark.parametrize("has_journal", [True, False])
def test_a_batch_that_does_not_fit_is_refused(
    tmp_path: Path, batch: dict[str, Tensor], words: str, has_journal: bool
) -> None:
    fields = {"images": images(5), "labels": torch.arange(5), "score": torch.rand(5, 2)}
    with make_pool(folder=tmp_path if has_journal else None) as pool:
        pool.add(**fields)
        with pytest.raises(ValueError, match=words):
            pool.add(**fields | batch)
        assert len(pool) == 5
        assert pool.labels[5:].eq(-1).all()
        assert pool.flush() == {"shards": [5]}


def test_append_stops_at_the_capacity() -> None:
    with make_pool(6) as pool:
        pool.add(images(4), torch.arange(4))
        with pytest.raises(ValueError, match="capacity of 6"):
            pool.add(images(3), torch.arange(3))


def test_cap_leaves_out_what_exceeds_the_capacity() -> None:
    with make_pool(6, policy="cap") as pool:
        assert pool.add(images(4), torch.arange(4)).tolist() == [0, 1, 2, 3]
        assert pool.add(images(4), torch.arange(4, 8)).tolist() == [4, 5]
        assert pool.add(images(4), torch.arange(4)).tolist() == []
        assert pool.labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("storage", ["device", "mmap"])
def test_a_ring_keeps_the_newest(tmp_path: Path, storage: str) -> None:
    with make_pool(5, tmp_path, policy="ring", storage=storage) as pool:
        for round_ in range(4):
            pool.add(images(2, seed=round_), torch.full((2,), round_))
        assert pool.add(images(1, seed=9), torch.full((1,), 9)).tolist() == [3]
        assert len(pool) == 5
        assert pool.newest(5)[1].tolist() == [2, 2, 3, 3, 9]
        assert pool.read(torch.arange(5), PLAIN).labels.tolist() == [2, 3, 3, 9, 2]
        assert pool.class_counts.tolist() == [0, 0, 2, 2, 0, 0, 0, 0, 0, 1]


def test_labels_may_change_after_they_were_added(tmp_path: Path) -> None:
    """A method keeps its labels in one buffer and fills it anew for the next round."""
    labels, pixels = torch.arange(4), torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    with make_pool(8, tmp_path) as pool:
        pool.add_bytes(pixels, labels)
        labels.zero_()
        pixels += 1
        manifest = pool.flush()
    with make_pool(8, tmp_path) as pool:
        pool.restore(manifest)
        assert pool.labels[:4].tolist() == [0, 1, 2, 3]
        assert not pool.newest(4)[0].any()


def fill(pool: Pool, rounds: int, first: int = 0) -> None:
    for round_ in range(first, first + rounds):
        score = torch.rand(7, 2, generator=torch.Generator().manual_seed(round_))
        pool.add(images(7, seed=round_), (torch.arange(7) + round_) % 10, score=score)


def epoch(pool: Pool, steps: int = 4) -> list[Tensor]:
    """Everything that some student steps read."""
    seed_phase(3, 0, 0, "distillation")
    batches = pool.batches(EpochShuffle(len(pool), 6), VIEW, steps)
    return [part for b in batches for part in (b.images.contiguous(), b.labels, b.indices, b.extras["score"])]


def reference(policy: str, rounds: int) -> list[Tensor]:
    """The same by the plainest means: the torch stream on memory, nothing ahead, no journal."""
    with make_pool(20, policy=policy, stream="torch") as pool:
        fill(pool, rounds)
        return epoch(pool)


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance if a.ndim == 4 else 0)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize(("policy", "rounds"), [("append", 2), ("cap", 4), ("ring", 5)])
@pytest.mark.parametrize(("stream", "tolerance"), [("kernel", 0.0), ("torch", 0.0), ("dali", 1e-6)])
@pytest.mark.parametrize("storage", ["device", "mmap"])
def test_every_tier_stream_and_policy_reads_the_same(
    tmp_path: Path, storage: str, stream: str, tolerance: float, policy: str, rounds: int, prefetch: int
) -> None:
    if stream == "dali":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (pip install dfkd-fast[dali])")
    options = {"storage": storage, "stream": stream, "policy": policy, "prefetch": prefetch}
    expected = reference(policy, rounds)
    with make_pool(20, tmp_path, **options) as pool:
        fill(pool, rounds)
        assert_same(epoch(pool), expected, tolerance)
        manifest = pool.flush()
        if policy == "ring":
            fill(pool, 2, first=50)  # an abandoned phase
    with make_pool(20, tmp_path, **options) as pool:
        assert pool.restore(manifest) == ""
        assert [pool.written] == manifest["shards"]
        assert_same(epoch(pool), expected, tolerance)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp64"])
@pytest.mark.parametrize("stream", ["kernel", "dali"])
def test_other_precisions_and_formats(tmp_path: Path, stream: str, precision: str) -> None:
    runtime = Runtime(device=torch.device("cpu"), precision=precision, channels_last=False)
    with make_pool(runtime=runtime, stream=stream) as pool, make_pool(runtime=runtime, stream="torch") as plain:
        for each in (pool, plain):
            each.add(images(20), torch.arange(20) % 10)
        torch.manual_seed(0)
        found = pool.read(torch.arange(6), VIEW).images
        torch.manual_seed(0)
        expected = plain.read(torch.arange(6), VIEW).images
    assert found.dtype == runtime.compute_dtype
    assert found.is_contiguous()
    tolerance = 1e-6 + torch.finfo(found.dtype).eps * 4 * (stream == "dali" and precision != "fp64")
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("stream", "prefetch"), [("kernel", 0), ("kernel", 2), ("dali", 2)])
def test_a_batch_shows_the_pool_as_it_was_when_it_was_drawn(tmp_path: Path, stream: str, prefetch: int) -> None:
    """A ring may overwrite a slot while a batch with it is prepared: old image with old label, or new with new."""
    with make_pool(6, tmp_path, storage="mmap", policy="ring", stream=stream, prefetch=prefetch) as pool:
        pool.add(torch.zeros(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64))
        seen = []
        for step, batch in enumerate(pool.batches(EpochShuffle(6, 6, seed=0), PLAIN, 8)):
            value = batch.images.amax((1, 2, 3)).mul(255).round().long()
            assert torch.equal(value, batch.labels)
            seen.append(batch.labels.max().item())
            pool.add(torch.full((6, 3, 8, 8), (step + 1) / 255), torch.full((6,), step + 1))
        assert seen == [max(0, step - prefetch) for step in range(8)]


def test_an_epoch_that_is_stopped_early_leaves_nothing_behind(tmp_path: Path) -> None:
    with make_pool(storage="mmap", folder=tmp_path, prefetch=2) as pool:
        fill(pool, 2)
        expected = epoch(pool)
        for _ in pool.batches(EpochShuffle(14, 6, seed=9), VIEW, 5):
            break
        assert_same(epoch(pool), expected, 0)


def test_a_pool_of_other_images_is_refused(tmp_path: Path) -> None:
    with make_pool(folder=tmp_path) as pool:
        pool.add(images(3), torch.arange(3))
        manifest = pool.flush()
    other = Pool(20, (3, 16, 16), runtime=CPU, journal=Journal(tmp_path, capacity=20))
    with pytest.raises(UserError, match=r"holds images of uint8 \[8, 8, 3\], the run makes uint8 \[16, 16, 3\]"):
        other.restore(manifest)
    other.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    capacity=st.integers(1, 30),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    policy=st.sampled_from(["append", "cap", "ring"]),
    storage=st.sampled_from(["device", "mmap"]),
    stop=st.integers(0, 11),
)
def test_the_pool_is_a_list_with_a_limit(
    tmp_path_factory: pytest.TempPathFactory, capacity: int, sizes: list[int], policy: str, storage: str, stop: int
) -> None:
    """Against a list of labels, through a restart in between."""
    folder = tmp_path_factory.mktemp("pool")
    model: list[int] = []
    slots: dict[int, int] = {}

    def add(pool: Pool, size: int) -> None:
        labels = (torch.arange(size) + len(model)) % 10
        pixels = torch.full((size, 8, 8, 3), 0, dtype=torch.uint8) + labels.view(-1, 1, 1, 1).to(torch.uint8)
        room = capacity - len(model)
        if size > (capacity if policy == "ring" else room) and policy != "cap":
            with pytest.raises(ValueError, match="exceed the capacity"):
                pool.add_bytes(pixels, labels)
            return
        kept = size if policy == "ring" else min(size, room)
        assert pool.add_bytes(pixels, labels).tolist() == [(len(model) + i) % capacity for i in range(kept)]
        for label in labels[:kept].tolist():
            slots[len(model) % capacity] = label
            model.append(label)

    def check(pool: Pool) -> None:
        assert len(pool) == int(pool.size) == len(slots)
        if slots:
            found = pool.read(torch.arange(len(slots)), PLAIN)
            assert found.labels.tolist() == [slots[slot] for slot in range(len(slots))]
            assert torch.equal(found.images[:, 0, 0, 0].mul(255).round().long(), found.labels)
            assert pool.newest(capacity)[1].tolist() == model[-capacity:]
        assert pool.class_counts.tolist() == [list(slots.values()).count(label) for label in range(10)]

    with make_pool(capacity, folder, policy=policy, storage=storage) as pool:
        for size in sizes[:stop]:
            add(pool, size)
        manifest = pool.flush()
        check(pool)
    with make_pool(capacity, folder, policy=policy, storage=storage) as pool:
        pool.restore(manifest)
        check(pool)
        for size in sizes[stop:]:
            add(pool, size)
        check(pool)
