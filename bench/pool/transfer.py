"""The share of memory and bus bandwidth that each storage reaches, and a step's loss to pinned storage. GPU only."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import Figure
from scene import BATCH, filled_pool, runtime_on, view_of
from timing import medians

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.models.factory import load_model
from dfkd_fast.pool.pool import Pool
from dfkd_fast.sampling import EpochShuffle

SIZE, COUNT, BATCHES = 112, 20_000, 50
BLOCK = 1 << 28
LEAST = {"device": 0.80, "pinned": 0.85, "mmap": 0.85}
MOST_SLOWER = 1.03


def measure(rounds: int, scratch: Path | None, device: str = "cuda") -> list[Figure]:
    """Shares of the measured bandwidths (reading and writing device memory; one way over the bus), and step times."""
    runtime = runtime_on(device)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        pools = {
            "device": filled_pool(runtime, SIZE, COUNT),
            "pinned": filled_pool(runtime, SIZE, COUNT, storage="pinned"),
            "mmap": filled_pool(runtime, SIZE, COUNT, Path(folder) / "pool", storage="mmap", prefetch=2),
        }
        source, target = (torch.empty(BLOCK, dtype=torch.uint8, device=device) for _ in range(2))
        host = torch.empty(BLOCK, dtype=torch.uint8, pin_memory=True)
        variants: dict[str, Callable[[], object]] = {
            "copy": lambda: target.copy_(source),
            "bus": lambda: target.copy_(host, non_blocking=True),
        }
        variants |= {storage: lambda p=pool: read(p) for storage, pool in pools.items()}
        steps = {f"step, {storage}": train(pools[storage], runtime) for storage in ("device", "pinned")}
        seconds = medians({**variants, **steps}, rounds=rounds, clock=synchronized_clock)
        for pool in pools.values():
            pool.close()
    bandwidth = {
        "device": 2 * BLOCK / seconds["copy"],
        "pinned": BLOCK / seconds["bus"],
        "mmap": BLOCK / seconds["bus"],
    }
    pixels = BATCHES * BATCH * SIZE * SIZE * 3
    moved = {"device": pixels * (1 + 4), "pinned": pixels, "mmap": pixels}  # bytes read, and float32 written
    figures = [
        Figure(
            name=f"{storage} storage, share of the bandwidth",
            value=moved[storage] / seconds[storage] / bandwidth[storage],
            unit="",
            bound=least,
            details={"bandwidth_gb_s": bandwidth[storage] / 1e9},
        )
        for storage, least in LEAST.items()
    ]
    slower = seconds["step, pinned"] / seconds["step, device"]
    name = "training step, pinned / device"
    return [*figures, Figure(name=name, value=slower, unit="x", bound=MOST_SLOWER, sense="at most")]


def read(pool: Pool) -> None:
    """Batches without a network."""
    sampler = EpochShuffle(len(pool), BATCH, device=pool.runtime.device)
    for _ in pool.batches(sampler, view_of(SIZE), BATCHES):
        pass


def train(pool: Pool, runtime: Runtime) -> Callable[[], None]:
    """Student steps of a ResNet-18 in bf16 on batches of the pool."""
    student = runtime.place(load_model("resnet18", num_classes=10, image_size=SIZE, mean=(0.5,) * 3, std=(0.2,) * 3)[0])
    optimizer = torch.optim.SGD(student.parameters(), 0.01)

    def steps() -> None:
        sampler = EpochShuffle(len(pool), BATCH, device=runtime.device)
        for batch in pool.batches(sampler, view_of(SIZE), BATCHES):
            optimizer.zero_grad()
            with torch.autocast(runtime.device.type, torch.bfloat16):
                loss = student(batch.images).float().square().mean()
            loss.backward()
            optimizer.step()

    return steps


def synchronized_clock() -> float:
    """Wall seconds, the device idle."""
    torch.cuda.synchronize()
    return time.perf_counter()
