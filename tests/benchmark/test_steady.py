"""A step takes the same time and the same memory in the first epoch and in the last, with a small pool and a large one.

`make bench SUITE=steady` takes 10,000 steps. Ratios only, of processor time: machines that test are busy.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import types
from pathlib import Path

import pytest
import torch

from dfkd_fast.benchmark.step_profiler import StepProfiler
from dfkd_fast.benchmark.step_timer import TimingWindow, sample
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.training import train as training

STEPS_OF_A_PHASE = 50
FLAGS = [
    *("--teacher", "cnn", "--student", "cnn_s", "--threads", "1", "--precision", "fp32", "--log.images-per-class", "0"),
    *("--warmup-epochs", "1", "--warmup-rounds", "5", "--rounds", "5", "--synthesis-steps", "10", "--eval.every", "0"),
    *("--synthesis-batch-size", "10", "--batch-size", "10", "--student-steps", str(STEPS_OF_A_PHASE)),
    *("--generator-width", "8", "--noise-features", "16", "--generator-life", "5", "--teacher-recipe.epochs", "1"),
]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seconds_of_fixed_work() -> float:
    """How fast the machine is just now: what else runs on it takes cache and memory from every process."""
    maps, weight = torch.ones(16, 32, 32, 32), torch.ones(32, 32, 3, 3)
    start = time.process_time()
    for _ in range(20):
        torch.nn.functional.conv2d(maps, weight, padding=1)
    return time.process_time() - start


def drift(values: list[float]) -> float:
    """By how much the line through the values rises from end to end, as a share of their median (Theil and Sen)."""
    slopes = [(b - a) / (j - i) for i, a in enumerate(values) for j, b in enumerate(values) if i < j]
    return statistics.median(slopes) * len(values) / statistics.median(values)


def test_drift_is_found() -> None:
    assert drift([1.0, 1.1, 1.2, 1.3, 1.4]) == pytest.approx(5 * 0.1 / 1.2)
    assert drift([1.0, 1.1, 5.0, 1.1, 1.0, 1.1, 1.0]) == pytest.approx(0, abs=0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's /proc")
def test_neither_time_nor_memory_grows_with_the_run(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = request.config.getoption("--steady-steps", 600)
    epochs = steps // (2 * STEPS_OF_A_PHASE) + 1
    flags = [*FLAGS, "--epochs", str(epochs), "--checkpoint.every", str(max(1, epochs // 4))]
    config = load_config(
        default_config("nayer"), preset="digits", flags=[*flags, "--run-dir", str(tmp_path / "run"), "--data", "digits"]
    )
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "teachers"))
    clocks = types.SimpleNamespace(perf_counter=time.process_time, monotonic=time.monotonic)
    monkeypatch.setattr("dfkd_fast.reporting.loggers.time", clocks)
    memory: list[int] = []
    machine: list[float] = []
    save = training.Run.save

    def watch(run: training.Run, checkpoint: object) -> None:
        save(run, checkpoint)
        memory.append(resident_bytes())
        machine.append(seconds_of_fixed_work())

    monkeypatch.setattr(training.Run, "save", watch)
    training.train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["phase"] != "evaluation"]
    for phase in ("synthesis", "distillation"):
        pairs = [(line, now) for line, now in zip(lines, machine, strict=True) if line["phase"] == phase]
        relative = [line["seconds"] / now for line, now in pairs[2:]]  # without what is only done once
        assert len(relative) >= epochs - 3
        assert drift(relative) < (0.25 if steps >= 5000 else 1.0), f"{phase}: {relative}"  # short runs are noisy
    settled = memory[len(memory) // 3 :]
    assert max(settled[-3:]) - min(settled[:3]) < 16e6, "resident memory grows"


def test_time_of_a_student_step_does_not_depend_on_the_pool(tmp_path: Path) -> None:
    """100 and 100,000 images: less than a third apart, in the best of five turns each. Page faults alone, which depend
    on how the heap happens to lie, make a turn twice as long.
    """
    runtime = make_runtime(device="cpu", precision="fp32", threads=1)
    info = ModelInfo(name="", num_classes=10, image_size=32, mean=(0.5,) * 3, std=(0.2,) * 3)
    sizes = ("--epochs", "3", "--batch-size", "64", "--pool.capacity", "110000", "--pool.storage", "device")
    config = load_config(default_config("nayer"), preset="digits", flags=[*FLAGS, *sizes])
    few, many = (StepProfiler(config, info, runtime, tmp_path / name) for name in ("few", "many"))
    size = ImageSize.of(32)
    pixels = torch.randint(0, 256, (10_000, *size, 3), dtype=torch.uint8)
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    few.pool[size].add_bytes(pixels[:100], labels[:100])
    while len(many.pool[size]) < 100_000:
        many.pool[size].add_bytes(pixels, labels)
    window = TimingWindow(warmup=2, samples=9, clock=time.process_time)
    turns = [[sample(each.student_step, window, runtime).median for each in (few, many)] for _ in range(5)]
    few.close()
    many.close()
    fast_few, fast_many = map(min, zip(*turns, strict=True))
    assert 2 / 3 < fast_many / fast_few < 1.5
