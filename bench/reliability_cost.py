"""The cost of reliability: processor time and syncs of a checkpoint, of the pool and of metrics.jsonl.

`PYTHONPATH=TREE:TREE/kernels python bench/reliability_cost.py` measures the code in TREE, so that two versions can be
run side by side; wall time says nothing on a machine that others use, and a sync waits without computing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.pool import Pool
from dfkd_fast.reporting.loggers import RunLogger
from dfkd_fast.training.checkpoints.checkpoint import Checkpoint, save_checkpoint

IMAGES, BATCH = 20_000, 200


def main() -> None:
    """Print the median processor time of each part, and its syncs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=40, help="how many checkpoints are written")
    saves = parser.parse_args().saves
    syncs = count_syncs()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "checkpoints").mkdir()
        tensors = {f"student/{index}": torch.randn(125, 250) for index in range(40)}

        def save(number: int) -> None:
            checkpoint = Checkpoint(epoch=number, phase="distillation", tensors=tensors, record={})
            save_checkpoint(folder / "checkpoints", checkpoint, keep=2)

        show("checkpoint of 5 MB", [spent(lambda number=number: save(number), syncs) for number in range(saves)])
        show(f"{IMAGES:,} images", [spent(lambda: fill(folder / "pool"), syncs) for _ in range(3)])
        logger = RunLogger(folder, total_epochs=1)

        def line() -> None:
            logger.record(epoch=0, phase="synthesis")
            getattr(logger, "sync", int)()  # older versions have none

        show("line of metrics", [spent(line, syncs) for _ in range(saves)])


def count_syncs() -> list[int]:
    """A count that `os.fsync` adds to from now on."""
    count, sync = [0], os.fsync

    def counted(handle: int) -> None:
        count[0] += 1
        sync(handle)

    os.fsync = counted  # type: ignore[assignment]
    return count


def spent(call: Callable[[], None], syncs: list[int]) -> tuple[float, int]:
    """Processor seconds and syncs of a call."""
    syncs[0], start = 0, time.process_time()
    call()
    return time.process_time() - start, syncs[0]


def fill(folder: Path) -> None:
    """Add images of 32 pixels to a new pool, with a flush for each 1,000."""
    journal = Journal(folder, capacity=IMAGES, replace=True)
    runtime = make_runtime(device="cpu", threads=1)
    pool = Pool(IMAGES, (3, 32, 32), runtime=runtime, num_classes=10, journal=journal)
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    for number in range(1, IMAGES // BATCH + 1):
        pool.add(images, labels)
        if number * BATCH % 1000 == 0:
            pool.flush()
    pool.close()


def show(what: str, found: list[tuple[float, int]]) -> None:
    """Print the medians of a series."""
    seconds, syncs = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"{what}: {1000 * seconds:.1f} ms of processor time, {syncs:.0f} syncs", flush=True)


if __name__ == "__main__":
    main()
