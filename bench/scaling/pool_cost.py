"""The cost of a batch from pools of 10^4 to 10^7 images of 32 px: from the page cache, and from the disk where the pool
is larger than memory.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from scene import BATCH, filled_pool, runtime_on, smooth_images, view_of
from sizes import SIZE, read
from timing import medians

from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.pool import Pool
from dfkd_fast.pool.streams import make_stream
from dfkd_fast.sampling import EpochShuffle
from dfkd_kernels import PrioritySampler

BATCHES = 16
"""in one timing"""
MOST_SLOWER = 1.15
"""a batch of the largest warm pool to one of the smallest"""
MAPPED, MEMORY, PRIORITIES = "a batch, mapped", "a batch, in memory", "priorities drawn and updated"
SHUFFLE, FLUSH = "an epoch's permutation", "a round's images written and flushed"

Figures = dict[str, dict[int, float]]
"""what -> images in the pool -> processor seconds"""


def warm(counts: Sequence[int], rounds: int, scratch: Path | None) -> Figures:
    """Processor seconds by size: batches of the first images of one pool, all in the page cache, interleaved."""
    view, runtime, largest = view_of(SIZE), runtime_on(), max(counts)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        pools = {
            MEMORY: filled_pool(runtime, SIZE, largest),
            MAPPED: filled_pool(runtime, SIZE, largest, Path(folder) / "pool", storage="mmap"),
        }
        variants: dict[tuple[str, int], Callable[[], object]] = {}
        for name, pool in pools.items():
            stream = make_stream("kernel", pool.storage, view, runtime, shape=(BATCH, SIZE, SIZE, 3), depth=0)
            for count in counts:
                sampler = EpochShuffle(count, BATCH, seed=0)
                variants[name, count] = lambda a=stream, b=sampler: read(a, b, view, BATCHES)
            for _ in range(largest // BATCH // BATCHES):  # every page is touched before anything is timed
                variants[name, largest]()
        for count in counts:
            variants[PRIORITIES, count] = priorities_of(count)
            variants[SHUFFLE, count] = lambda n=count: torch.randperm(n)
        seconds = medians({f"{name}/{count}": call for (name, count), call in variants.items()}, rounds=rounds)
        for pool in pools.values():
            pool.close()
    figures: Figures = {}
    for name, count in variants:
        share = 1 if name == SHUFFLE else BATCHES
        figures.setdefault(name, {})[count] = seconds[f"{name}/{count}"] / share
    return figures


def priorities_of(count: int) -> Callable[[], None]:
    """Draws of 256 slots of a full tree, each fed back."""
    tree = PrioritySampler(count)
    for start in range(0, count, 1 << 20):
        slots = torch.arange(start, min(start + (1 << 20), count))
        tree.update(slots, torch.rand(len(slots)))
    generator = torch.Generator().manual_seed(0)

    def steps() -> None:
        for _ in range(BATCHES):
            slots, _ = tree.sample(BATCH, generator)
            tree.update(slots, torch.rand(BATCH, generator=generator))

    return steps


def flushes(counts: Sequence[int], scratch: Path | None) -> Figures:
    """Processor seconds, of all threads, of adding 256 images to a pool that holds so many, and of making them safe."""
    images, labels = smooth_images(BATCH, SIZE), torch.zeros(BATCH, dtype=torch.int64)
    found = {}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for count in counts:
            pool = filled_pool(runtime_on(), SIZE, count, Path(folder) / str(count), storage="mmap", policy="ring")
            seconds = []
            for _ in range(5):
                start = time.process_time()
                pool.add_bytes(images, labels)
                pool.flush()
                seconds.append(time.process_time() - start)
            found[count] = statistics.median(seconds)
            pool.close()
    return {FLUSH: found}


def cold(count: int, batches: int, scratch: Path | None) -> dict[str, Any]:
    """A pool of `count` images on the disk, none of it in the page cache: bytes that a batch reads from the disk, and
    its seconds by the wall and of processor time. Takes 3 KB of disk an image while it lasts.
    """
    view, runtime = view_of(SIZE), runtime_on()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        started = time.perf_counter()
        pool = written(count, Path(folder))
        writing = time.perf_counter() - started
        forget(Path(folder))
        before, wall, processor = bytes_read(), time.perf_counter(), time.process_time()
        shuffle = EpochShuffle(count, BATCH, seed=0)
        for _ in pool.batches(shuffle, view, batches):
            pass
        line = {
            "batches": batches,
            "bytes_of_a_batch": BATCH * SIZE * SIZE * 3,
            "bytes_read": (bytes_read() - before) / batches,
            "seconds": (time.process_time() - processor) / batches,
            "wall_seconds": (time.perf_counter() - wall) / batches,
            "writing_wall_seconds": writing,
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "pool_bytes": count * SIZE * SIZE * 3,
        }
        assert runtime.device.type == "cpu"
        pool.close()
    return line


def written(count: int, folder: Path) -> Pool:
    """A mapped pool of `count` images, written with little of it left in the page cache."""
    pool = Pool(
        count,
        (3, SIZE, SIZE),
        runtime=runtime_on(),
        num_classes=10,
        journal=Journal(folder, capacity=count),
        storage="mmap",
    )
    few, labels = torch.randint(256, (4096, SIZE, SIZE, 3), dtype=torch.uint8), torch.zeros(4096, dtype=torch.int64)
    while pool.written < count:
        rest = min(len(few), count - pool.written)
        pool.add_bytes(few[:rest], labels[:rest])
        if pool.written % (len(few) * 64) == 0:
            pool.flush()
            forget(folder)
    pool.flush()
    return pool


def forget(folder: Path) -> None:
    """Drop a folder's files, which are on the disk, from the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def bytes_read() -> int:
    """What this process has made the disk read so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])
