"""Memory of a process that trains on a memory-mapped pool, the mapping apart."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from report import Figure
from scene import BATCH, filled_pool, runtime_on, view_of

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.losses.distillation import kd_kl
from dfkd_fast.models.factory import load_model
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.pool import Pool
from dfkd_fast.sampling import EpochShuffle

SIZE = 32
MOST_GIGABYTES = 1.0
TRAINED = 8
"""of all batches read, one in so many also makes a student step"""


def measure(count: int, scratch: Path | None) -> list[Figure]:
    """Peak anonymous memory of a process that takes up a pool of `count` images and reads each of them once."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        filled_pool(runtime_on(), SIZE, count, Path(folder), storage="mmap").close()
        command = [sys.executable, str(Path(__file__)), folder, str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    anonymous, mapped, peak = (float(value) for value in done.stdout.split())
    details = {"mapped_gb": mapped, "peak_rss_gb": peak, "pool_gb": count * SIZE * SIZE * 3 / 1e9}
    name = f"memory besides the mapping, pool of {details['pool_gb']:.1f} GB"
    return [Figure(name=name, value=anonymous, unit="GB", bound=MOST_GIGABYTES, sense="at most", details=details)]


def read_all(folder: Path, count: int) -> None:
    """Restore, read every image once with a step of a student now and then, print GB: anonymous, mapped, peak."""
    runtime = runtime_on()
    pool = Pool(count, (3, SIZE, SIZE), runtime=runtime, journal=Journal(folder, capacity=count), storage="mmap")
    pool.restore({"shards": [count]})
    student = runtime.place(load_model("wrn16_1", num_classes=10, image_size=SIZE, mean=(0.5,) * 3, std=(0.2,) * 3)[0])
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    anonymous = 0.0
    batches = pool.batches(EpochShuffle(count, BATCH), view_of(SIZE), count // BATCH)
    for number, batch in enumerate(batches):
        if number % (TRAINED * 20) == 0:
            step(student, optimizer, batch.images, runtime)
            anonymous = max(anonymous, resident("RssAnon"))
    print(max(anonymous, resident("RssAnon")), resident("RssFile"), resident("VmHWM"))


def step(student: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, runtime: Runtime) -> None:
    """One step against fixed targets: what a student step allocates."""
    optimizer.zero_grad()
    kd_kl(student(images), torch.zeros(len(images), 10), 4.0).backward()
    optimizer.step()


def resident(name: str) -> float:
    """A line of /proc/self/status in GB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024 / 1e9


if __name__ == "__main__":
    read_all(Path(sys.argv[1]), int(sys.argv[2]))
