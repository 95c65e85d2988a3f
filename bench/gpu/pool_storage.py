"""The pool's storages and streams: the same batches wherever the bytes lie and whatever carries them, and how fast."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pool"))

import torch
from scene import filled_pool, runtime_on, view_of
from step_report import StepReport, open_report
from torch import Tensor

from dfkd_fast.rng import seed_phase
from dfkd_fast.sampling import EpochShuffle

SIZE, COUNT, BATCH, BATCHES = 32, 1500, 64, 6


def batches(device: str, folder: Path | None, storage: str, stream: str) -> Tensor:
    """All images of a few batches, on the CPU."""
    runtime = runtime_on(device)
    prefetch = 2 if storage == "mmap" or stream == "dali" else 0
    pool = filled_pool(runtime, SIZE, COUNT, folder, storage=storage, stream=stream, prefetch=prefetch)
    try:
        seed_phase(0, 0, 0, "distillation")
        sampler = EpochShuffle(len(pool), BATCH, device=runtime.device)
        return torch.stack([batch.images.cpu().clone() for batch in pool.batches(sampler, view_of(SIZE), BATCHES)])
    finally:
        pool.close()


def compare(report: StepReport) -> None:
    """Each storage and stream beside the kernel on memory of the device."""
    expected = batches(report.device, None, "device", "kernel")
    cases = {"torch stream": ("device", "torch", 1e-6), "mmap storage": ("mmap", "kernel", 0.0)}
    if not report.rehearse:
        cases["pinned storage"] = ("pinned", "kernel", 0.0)
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        report.not_run("dali stream", "NVIDIA DALI is not installed")
    else:
        cases["dali stream"] = ("device" if report.rehearse else "pinned", "dali", 1e-6)
    for name, (storage, stream, allowed) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            found = batches(report.device, Path(folder) / "pool" if storage == "mmap" else None, storage, stream)
        apart = float((found - expected).abs().max())
        report.row(name, ok=apart <= allowed, largest_difference=apart)


def main() -> int:
    """Rows of the comparison, then the storages' shares of the bandwidth of memory and bus."""
    report = open_report("pool", __doc__)
    compare(report)
    if report.rehearse:
        report.not_run("bandwidth", "rehearsed on the CPU")
        return report.status()
    import transfer

    for figure in transfer.measure(3, None, report.device):
        report.row(figure.name, value=figure.value, bound=figure.bound, **figure.details)
    return report.status()


if __name__ == "__main__":
    sys.exit(main())
