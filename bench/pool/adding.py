"""The cost of adding a round of 256 images of 112 px, beside the copy that no pool can avoid."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import Figure
from scene import BATCH, runtime_on
from timing import medians

from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.pool import Pool
from dfkd_fast.pool.quantize import to_bytes

SIZE = 112
MOST_MILLISECONDS = 5.0


def measure(rounds: int, scratch: Path | None) -> list[Figure]:
    """Milliseconds that `add` takes of its caller's thread: memory alone, memory and journal, journal alone (mmap).

    The copy is the images' way to bytes in their place in the pool. The journal's thread writes meanwhile; what it
    takes of another core is told beside.
    """
    runtime = runtime_on()
    images = torch.rand(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 10
    place = torch.zeros(BATCH, SIZE, SIZE, 3, dtype=torch.uint8)
    capacity = BATCH * (rounds + 5)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        pools: dict[str, Pool] = {}
        for name, storage in (("memory", "device"), ("memory + journal", "device"), ("mmap", "mmap")):
            journal = None if name == "memory" else Journal(Path(folder) / storage, capacity=capacity)
            pools[name] = Pool(
                capacity, (3, SIZE, SIZE), runtime=runtime, num_classes=10, storage=storage, journal=journal
            )
        variants: dict[str, Callable[[], object]] = {"copy": lambda: place.copy_(to_bytes(images, "round"))}
        variants |= {name: lambda p=pool: p.add(images, labels) for name, pool in pools.items()}
        seconds = medians(variants, rounds=rounds, clock=time.thread_time)
        start = time.process_time() - time.thread_time()
        for _ in range(4):
            pools["mmap"].add(images, labels)
        pools["mmap"].flush()
        behind = (time.process_time() - time.thread_time() - start) / 4
        for pool in pools.values():
            pool.close()
    copy = 1e3 * seconds["copy"]
    details = {"copy_ms": copy, "writer_ms": 1e3 * behind}
    figures = [Figure(name=f"copy of {BATCH} images, {SIZE} px", value=copy, unit="ms")]
    for name in pools:
        beyond = 1e3 * seconds[name] - copy
        title = f"add beyond the copy, {name}"
        figures.append(
            Figure(name=title, value=beyond, unit="ms", bound=MOST_MILLISECONDS, sense="at most", details=details)
        )
    return figures
