"""`make bench SUITE=profile`: where the time of a step goes.

Runs a few synthesis steps and student steps of a preset under torch's profiler, on random weights, and prints what
takes the time: operators, with kernels on a GPU, each phase by itself, and what share the device is idle. Traces for
chrome://tracing or ui.perfetto.dev and the tables go to bench/results/profile-<device>/. Flags that are not its own are
the recipe's: `--synthesis-batch-size 100`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dfkd_fast.benchmark.methods import read_target
from dfkd_fast.benchmark.step_profiler import StepProfiler
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.training.records.run_record import machine_record

RESULTS = Path(__file__).resolve().parent / "results"
GROUPS = {
    "frozen networks' norm, activation and moments": ("dfkd_", "bnactmoments", "var_mean"),
    "convolution": ("conv", "winograd", "implicit_gemm", "cudnn", "xmma"),
    "matrix product": ("aten::mm", "addmm", "bmm", "gemm", "cutlass"),
    "batch norm": ("batch_norm", "bn_"),
    "optimiser": ("_fused_adam", "_fused_sgd", "adam", "sgd", "foreach"),
    "copies and layouts": ("copy", "contiguous", "clone", "to_copy", "cat", "memcpy", "reorder"),
    "gather (crop, flip, pool)": ("index", "gather", "flip", "pad"),
}
"""what the name of an operator, or of a kernel, has in it -> what it is counted as; the first that fits"""


def phases(profiler: StepProfiler, steps: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Both phases: name and what runs `steps` steps of it."""
    profiler.fill(profiler.step_round())

    def synthesis() -> None:
        for _ in range(steps):
            profiler.step_round()

    def distillation() -> None:
        for _ in range(steps):
            profiler.student_step()

    yield "synthesis", synthesis
    yield "distillation", distillation


def group_of(name: str) -> str:
    """What an operator or kernel counts as."""
    low = name.lower()
    return next((group for group, marks in GROUPS.items() if any(mark in low for mark in marks)), "elementwise, rest")


def self_seconds(event: Any, *, cuda: bool) -> float:
    """Seconds of an operator itself, on the device that computes."""
    return (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6


def table(prof: profile, steps: int, *, cuda: bool, rows: int) -> Iterator[str]:
    """By group and by operator (kernel, on a GPU): milliseconds of a step, share, calls."""
    events = [event for event in prof.key_averages() if self_seconds(event, cuda=cuda) > 0]
    total = sum(self_seconds(event, cuda=cuda) for event in events)
    groups: dict[str, float] = {}
    for event in events:
        groups[group_of(event.key)] = groups.get(group_of(event.key), 0) + self_seconds(event, cuda=cuda)
    yield f"{1e3 * total / steps:.1f} ms a step"
    for name, seconds in sorted(groups.items(), key=lambda item: -item[1]):
        yield f"  {1e3 * seconds / steps:9.2f} ms {100 * seconds / total:5.1f} %  {name}"
    yield "by operator:"
    for event in sorted(events, key=lambda event: -self_seconds(event, cuda=cuda))[:rows]:
        seconds = self_seconds(event, cuda=cuda)
        yield (
            f"  {1e3 * seconds / steps:9.2f} ms {100 * seconds / total:5.1f} % {event.count / steps:7.1f} calls"
            f"  {event.key[:90]}"
        )


def idle_share(prof: profile) -> float:
    """Share of the time from the first kernel to the last in which none runs."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in prof.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - spans[0][0])


def run(profiler: StepProfiler, runtime: Runtime, folder: Path, steps: int, rows: int) -> Iterator[str]:
    """Profile both phases; yields the tables' lines."""
    cuda = runtime.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    for name, call in phases(profiler, steps):
        call()
        runtime.synchronize()
        with profile(activities=activities) as prof:
            call()
            runtime.synchronize()
        prof.export_chrome_trace(str(folder / f"{name}.json.gz"))
        yield f"{name}: " + (f"idle {100 * idle_share(prof):.1f} %, " if cuda else "") + "self time, backward included"
        yield from table(prof, steps, cuda=cuda, rows=rows)


def main() -> None:
    """Profile a preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", default="nayer/cifar100")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="off")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=25)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options, flags = parser.parse_known_args()
    runtime = make_runtime(
        precision=options.precision,
        channels_last=True,
        threads=options.threads,
        compilation=options.compile,
        graphs=True,
    )
    target = read_target(options.target)
    config = load_config(default_config(target.method), preset=target.preset, flags=flags)
    folder = options.results / f"profile-{runtime.device.type}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as pool, (folder / "table.txt").open("w", encoding="utf-8") as file:
        profiler = StepProfiler(config, target.info, runtime, Path(pool))
        for line in (
            f"{target.name} {' '.join(flags)}",
            json.dumps(machine_record(runtime)),
            *run(profiler, runtime, folder, options.steps, options.rows),
        ):
            print(line, flush=True)
            print(line, file=file)
        profiler.close()
    print(f"traces and table: {folder}/")


if __name__ == "__main__":
    main()
