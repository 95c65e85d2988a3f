"""Streams by themselves: the double buffer, the choice, a missing DALI, and priorities as fresh as promised."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import dfkd_fast.pool.stream_kernel as stream_kernel
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.pool import Pool
from dfkd_fast.pool.stream import AugmentSpec, DirectStream
from dfkd_fast.pool.stream_kernel import StagedStream, kernel_stream
from dfkd_fast.pool.streams import make_stream
from dfkd_fast.sampling import ByPriority
from dfkd_kernels import PrioritySampler

CPU = Runtime(device=torch.device("cpu"), precision="fp32", channels_last=True)
GPU = Runtime(device=torch.device("cuda", 0), precision="fp32", channels_last=True)
INFO = ModelInfo(name="cnn", num_classes=10, image_size=6, mean=(0.4,) * 3, std=(0.2,) * 3)
VIEW = AugmentSpec(info=INFO, pad=1, flip=True)
SHAPE = (5, 6, 6, 3)


def mapped_pool(folder: Path, count: int = 50) -> Pool:
    pool = Pool(count, (3, 6, 6), runtime=CPU, journal=Journal(folder, capacity=count), storage="mmap")
    pixels = torch.randint(0, 256, (count, 6, 6, 3), generator=torch.Generator().manual_seed(0))
    pool.add_bytes(pixels.byte(), torch.arange(count) % 10, score=torch.rand(count))
    return pool


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_the_double_buffer_hands_out_batches_in_order(tmp_path: Path, depth: int) -> None:
    pool = mapped_pool(tmp_path)
    staged = StagedStream(pool.storage, VIEW, CPU, shape=SHAPE, depth=depth)
    direct = kernel_stream(pool.storage, VIEW, CPU)
    for step in range(12 + depth):
        if step < 12:
            slots, params = torch.randint(0, 50, (5,)), VIEW.draw(5, CPU.device)
            staged.push(slots, params)
            direct.push(slots, params)
        if step >= depth:
            found, expected = staged.pop(), direct.pop()
            assert torch.equal(found.images, expected.images)
            assert torch.equal(found.extras["score"], expected.extras["score"])
    staged.close()
    pool.close()


@pytest.mark.parametrize("wait", ["pop", "settle"])
def test_the_double_buffer_raises_in_the_caller_what_went_wrong_in_its_thread(tmp_path: Path, wait: str) -> None:
    pool = mapped_pool(tmp_path)
    staged = StagedStream(pool.storage, VIEW, CPU, shape=SHAPE, depth=1)
    staged.push(torch.arange(5) + 100_000, VIEW.draw(5, CPU.device))
    with pytest.raises(IndexError):
        getattr(staged, wait)()
    staged.close()
    pool.close()


@pytest.mark.parametrize(
    ("storage", "runtime", "fused", "staged"),
    [
        ("device", CPU, True, False),
        ("mmap", CPU, True, False),
        ("device", GPU, True, False),
        ("pinned", GPU, True, False),
        ("pinned", GPU, False, True),
        ("mmap", GPU, True, True),
    ],
)
def test_the_device_reads_in_place_what_it_can_address(
    monkeypatch: pytest.MonkeyPatch, storage: str, runtime: Runtime, fused: bool, staged: bool
) -> None:
    made: list[str] = []
    monkeypatch.setattr("dfkd_fast.pool.streams._reads_pinned", lambda: fused)
    monkeypatch.setattr("dfkd_fast.pool.streams.StagedStream", lambda *_, **__: made.append("staged"))
    monkeypatch.setattr("dfkd_fast.pool.streams.kernel_stream", lambda *_, **__: made.append("kernel"))

    class Held:
        def __init__(self, storage: str) -> None:
            self.kind = storage

    make_stream("auto", Held(storage), VIEW, runtime, shape=SHAPE, depth=2)  # type: ignore[arg-type]
    assert made == ["staged" if staged else "kernel"]


def test_a_missing_dali_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    pool = mapped_pool(tmp_path)
    with pytest.raises(
        UserError, match=r"--pool.stream dali: NVIDIA DALI is missing .*pip install 'dfkd-fast\[dali\]'"
    ):
        make_stream("dali", pool.storage, VIEW, CPU, shape=SHAPE, depth=0)
    pool.close()


def test_dali_hands_out_memory_that_is_not_used_again(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (pip install dfkd-fast[dali])")
    pool = mapped_pool(tmp_path)
    stream = make_stream("dali", pool.storage, VIEW, CPU, shape=SHAPE, depth=2)
    kept, copies = [], []
    for step in range(14):
        if step < 12:
            stream.push(torch.randint(0, 50, (5,)), VIEW.draw(5, CPU.device))
        if step >= 2:
            images = stream.pop().images
            kept.append(images)
            copies.append(images.clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    stream.close()
    pool.close()


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_priorities_are_as_stale_as_the_prefetch_is_deep(tmp_path: Path, prefetch: int) -> None:
    """After each step all priority moves to one slot: the batch `prefetch` + 1 steps later is that slot."""
    pool = Pool(50, (3, 6, 6), runtime=CPU, prefetch=prefetch)
    pool.add_bytes(torch.zeros(50, 6, 6, 3, dtype=torch.uint8), torch.arange(50) % 10)
    tree = PrioritySampler(50, alpha=1)
    tree.update(torch.tensor([49]), torch.ones(1))
    for step, batch in enumerate(pool.batches(ByPriority(tree, 5, seed=0), VIEW, 10)):
        assert batch.is_weights is not None
        expected = step - 1 - prefetch
        assert batch.indices.tolist() == [expected if expected >= 0 else 49] * 5
        tree.clear(torch.arange(50))
        tree.update(torch.tensor([step]), torch.ones(1))


def test_a_direct_stream_makes_a_batch_where_it_is_pushed(tmp_path: Path) -> None:
    pool = mapped_pool(tmp_path)
    calls: list[int] = []
    stream = DirectStream(pool.storage, lambda images, rows, params: calls.append(len(rows)) or rows)
    stream.push(torch.arange(3), VIEW.draw(3, CPU.device))
    assert calls == [3]
    assert stream.pop().images.tolist() == [0, 1, 2]
    pool.close()


@pytest.mark.gpu
@pytest.mark.parametrize("storage", ["device", "pinned", "mmap"])
@pytest.mark.parametrize(("stream", "tolerance"), [("kernel", 0.0), ("torch", 0.0), ("dali", 1e-6)])
def test_every_tier_and_stream_on_a_gpu(tmp_path: Path, storage: str, stream: str, tolerance: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if stream == "dali" and storage == "device":
        pytest.skip("DALI reads host memory")
    batches = {}
    for name, options in {
        "found": {"storage": storage, "stream": stream, "prefetch": 2},
        "reference": {"storage": "device", "stream": "torch"},
    }.items():
        pool = Pool(600, (3, 6, 6), runtime=GPU, journal=Journal(tmp_path / name, capacity=600), **options)
        torch.manual_seed(0)
        for _ in range(2):
            pool.add(torch.rand(300, 3, 6, 6, device="cuda"), torch.arange(300, device="cuda") % 10)
        manifest = pool.flush()
        pool.close()
        pool = Pool(600, (3, 6, 6), runtime=GPU, journal=Journal(tmp_path / name, capacity=600), **options)
        pool.restore(manifest)
        tree = PrioritySampler(600, device="cuda")
        tree.update(torch.arange(600, device="cuda"), torch.rand(600, device="cuda"))
        batches[name] = list(pool.batches(ByPriority(tree, 64, seed=1), VIEW, 20))
        torch.cuda.synchronize()
        pool.close()
    for found, expected in zip(batches["found"], batches["reference"], strict=True):
        torch.testing.assert_close(found.images, expected.images, rtol=0, atol=tolerance)
        assert torch.equal(found.labels, expected.labels)


def test_the_fused_kernel_is_what_the_stream_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pool = mapped_pool(tmp_path)
    seen: list[tuple[int, ...]] = []
    kernel = stream_kernel.gather_augment

    def watch(images: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        seen.append(tuple(images.shape))
        return kernel(images, *rest, **named)

    monkeypatch.setattr(stream_kernel, "gather_augment", watch)
    pool.read(torch.arange(5), VIEW)
    assert seen == [(2 * 4096, 6, 6, 3)]  # the mapping itself, not a copy of the rows
    pool.close()
