"""The memory that a pool goes to, and the mapping that makes one range of many files."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dfkd_fast.pool.storage as tier_module
from dfkd_fast.config.train import PoolConfig
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.files.limits import free_host_memory
from dfkd_fast.pool.build import check_pool, make_pool
from dfkd_fast.pool.disk.window import Window
from dfkd_fast.pool.storage import Room, choose_storage

CPU = Runtime(device=torch.device("cpu"), precision="fp32", channels_last=True)
CUDA = torch.device("cuda", 0)
GB = 10**9


@pytest.mark.parametrize(
    ("requested", "size", "device", "host_only", "storage", "words"),
    [
        ("auto", 3, "cpu", False, "device", "3.0 GB of 16.0 GB free on cpu"),
        ("auto", 9, "cpu", False, "mmap", "9.0 GB; only 16.0 GB free on cpu"),
        ("auto", 5, "cuda:0", False, "device", "5.0 GB of 10.0 GB free on cuda:0"),
        ("auto", 6, "cuda:0", False, "pinned", "6.0 GB of 16.0 GB free in host memory, 10.0 GB on cuda:0"),
        ("auto", 5, "cuda:0", True, "pinned", "5.0 GB of 16.0 GB free in host memory"),
        ("auto", 10, "cuda:0", False, "mmap", "only 10.0 GB free on cuda:0, 16.0 GB in host memory"),
        ("mmap", 1, "cpu", False, "mmap", "as asked"),
        ("device", 99, "cpu", False, "device", "as asked"),
    ],
)
def test_auto_goes_by_size_and_says_why(
    requested: str, size: int, device: str, host_only: bool, storage: str, words: str
) -> None:
    room = Room(16 * GB if device == "cpu" else 10 * GB, 16 * GB)
    found, why = choose_storage(
        requested,  # type: ignore[arg-type]
        size * GB,
        device=torch.device(device),
        room=room,
        on_disk=True,
        host_only=host_only,
    )
    assert found == storage
    assert words in why


@pytest.mark.parametrize(
    ("requested", "device", "on_disk", "host_only", "words"),
    [
        ("pinned", "cpu", True, False, "--pool.storage pinned: serves a CUDA device, the run is on cpu; choose device"),
        ("device", "cuda:0", True, True, "--pool.storage device: --pool.stream dali reads host memory"),
        ("mmap", "cpu", False, False, "--pool.storage mmap: needs a pool folder"),
        ("auto", "cpu", False, False, "--pool.capacity: 50.0 GB do not fit"),
    ],
)
def test_what_this_machine_cannot_do(requested: str, device: str, on_disk: bool, host_only: bool, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose_storage(
            requested,  # type: ignore[arg-type]
            50 * GB,
            device=torch.device(device),
            room=Room(GB, GB),
            on_disk=on_disk,
            host_only=host_only,
        )


def test_free_memory_respects_a_containers_limit_and_the_other_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  16000 kB\nMemAvailable:  9000 kB\n")
    assert free_host_memory(tmp_path) == 9000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert free_host_memory(tmp_path) == 9000 * 1024
    (group / "memory.max").write_text("4000000\n")
    (group / "memory.current").write_text("3000000\n")
    (group / "memory.stat").write_text("anon 1000000\ninactive_file 500000\n")
    assert free_host_memory(tmp_path) == 1_500_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_host_memory(tmp_path) == 375_000
    assert free_host_memory() > 0


def test_a_run_is_told_where_its_pool_is(tmp_path: Path) -> None:
    options = {"capacity": 5000, "image_shape": (3, 32, 32), "num_classes": 10, "runtime": CPU}
    pool, where = make_pool(PoolConfig(), tmp_path, **options)  # type: ignore[arg-type]
    assert re.fullmatch(r"pool: 5,000 images of 32x32, storage device \(15.4 MB of .* free on cpu\)", where)
    assert (pool.capacity, pool.prefetch) == (5000, 0)
    pool, where = make_pool(PoolConfig(capacity=70, storage="mmap", stream="dali"), tmp_path, **options)  # type: ignore[arg-type]
    assert "storage mmap" in where
    assert (pool.capacity, pool.prefetch) == (70, 2)
    with pytest.raises(UserError, match="pinned"):
        check_pool(PoolConfig(storage="pinned"), CPU)


PAGE = os.sysconf("SC_PAGE_SIZE")


def file_of(path: Path, value: int, pages: int = 2) -> int:
    path.write_bytes(bytes([value]) * pages * PAGE)
    return os.open(path, os.O_RDONLY)


def test_a_window_shows_parts_of_files_at_any_place(tmp_path: Path) -> None:
    window = Window(4 * PAGE)
    tensor = window.tensor(torch.uint8, (4, PAGE))
    assert not tensor.any()
    handles = [file_of(tmp_path / str(value), value) for value in (1, 2)]
    window.place(PAGE, handles[0], PAGE, PAGE)
    window.place(2 * PAGE, handles[1], 0, 2 * PAGE)
    assert tensor[:, 7].tolist() == [0, 1, 2, 2]
    window.place(PAGE, handles[1], 0, PAGE)
    assert tensor[:, 7].tolist() == [0, 2, 2, 2]
    os.pwrite(os.open(tmp_path / "2", os.O_RDWR), b"\x09", 7)
    assert tensor[:, 7].tolist() == [0, 9, 9, 2]  # written by anybody, seen here
    with pytest.raises(UserError, match="maps pages of"):
        window.place(0, handles[0], 100, PAGE)


def test_a_window_lives_as_long_as_a_tensor_over_it(tmp_path: Path) -> None:
    window = Window(64 * PAGE)
    address = window.address
    mapped = f"{address:x}-"
    window.place(0, file_of(tmp_path / "a", 5), 0, 2 * PAGE)
    view = window.tensor(torch.uint8, (64 * PAGE,))[3:10]
    del window
    gc.collect()
    assert view.tolist() == [5] * 7
    assert mapped in Path("/proc/self/maps").read_text()
    del view
    gc.collect()
    assert mapped not in Path("/proc/self/maps").read_text()


def mapping_flags(address: int) -> list[str]:
    """What the kernel notes about the mapping that begins at `address`."""
    smaps = Path("/proc/self/smaps").read_text()
    found = re.search(rf"^{address:08x}-.*?^VmFlags: (.*?)$", smaps, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].split()


@pytest.mark.parametrize("cached", [True, False])
def test_files_that_do_not_fit_into_the_page_cache_are_read_without_their_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """Around each of a few images of 3 kB megabytes would be read, and push others out."""
    monkeypatch.setattr(tier_module, "free_host_memory", lambda: 10**8 if cached else 10**6)
    runtime = {"runtime": CPU, "num_classes": 10}
    pool, _ = make_pool(PoolConfig(storage="mmap"), tmp_path, capacity=5000, image_shape=(3, 32, 32), **runtime)  # type: ignore[arg-type]
    pixels = torch.randint(0, 256, (5000, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    pool.add_bytes(pixels, torch.arange(5000) % 10, score=torch.arange(5000.0))
    slots = torch.tensor([0, 4999, 17, 17, 4095, 4096])
    assert torch.equal(pool.pixels(slots), pixels[slots])
    assert torch.equal(pool.storage.column("score")[pool.storage.locate(slots)], slots.float())
    flags = mapping_flags(pool.storage.column("images").data_ptr())
    assert ("rr" in flags) == (not cached)  # "random read"
    assert not cached or "hg" in flags or not Path("/sys/kernel/mm/transparent_hugepage").exists()
    pool.close()


READ_A_POOL = """
import sys, torch
from pathlib import Path
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.pool import Pool
from dfkd_fast.pool.stream import AugmentSpec
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.sampling import EpochShuffle

def anonymous():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) // 1024, int(lines["RssFile"].split()[0]) // 1024

torch.set_num_threads(1)
runtime = Runtime(device=torch.device("cpu"), precision="fp32", channels_last=True)
info = ModelInfo(name="cnn", num_classes=10, image_size=112, mean=(0.5,) * 3, std=(0.2,) * 3)
pool = Pool(8192, (3, 112, 112), runtime=runtime, journal=Journal(Path(sys.argv[1]), capacity=8192), storage="mmap")
pool.restore({"shards": [8192]})
sampler, view = EpochShuffle(8192, 64), AugmentSpec(info=info, pad=4, flip=True)
next(pool.batches(sampler, view, 1))
before = anonymous()
for batch in pool.batches(sampler, view, 128):
    assert batch.images.shape == (64, 3, 112, 112)
after = anonymous()
print(before[0], after[0], after[1])
"""


def test_a_mapped_pool_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """300 MB of images: all of them get mapped, next to nothing is copied."""
    runtime = {"runtime": CPU, "num_classes": 10}
    pool, _ = make_pool(PoolConfig(storage="mmap"), tmp_path, capacity=8192, image_shape=(3, 112, 112), **runtime)  # type: ignore[arg-type]
    for _ in range(16):
        pool.add_bytes(torch.zeros(512, 112, 112, 3, dtype=torch.uint8), torch.zeros(512, dtype=torch.int64))
    assert pool.flush() == {"shards": [8192]}
    pool.close()
    command = [sys.executable, "-c", READ_A_POOL, str(tmp_path)]
    before, after, mapped = map(int, subprocess.run(command, check=True, capture_output=True).stdout.split())
    assert mapped > 250
    assert after - before < 100
