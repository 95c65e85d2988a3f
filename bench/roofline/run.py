"""`make bench SUITE=roofline`: does the roofline give the step times that this CPU has?

Calibrates the rates of each kind of kernel (bench/roofline/calibrate.py), records the kernels of every
method's steps on tensors without values, times the same steps, and compares: one line for each kind of step, and one
with the rates, in bench/results/roofline-cpu.jsonl. Seconds are processor time of one thread. Batches are those of the
presets for digits; of those for CIFAR 16 images. Exit status 1 if a step is not within a fifth of what was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCH / "roofline"))

import torch  # noqa: E402
from calibrate import calibrate  # noqa: E402

from dfkd_fast.benchmark.methods import Target, read_target  # noqa: E402
from dfkd_fast.benchmark.recorded_steps import Recording, record  # noqa: E402
from dfkd_fast.benchmark.step_profiler import Timings, profile_steps  # noqa: E402
from dfkd_fast.benchmark.step_timer import TimingWindow  # noqa: E402
from dfkd_fast.catalog import METHODS  # noqa: E402
from dfkd_fast.costs.cards import Card, card_of, table  # noqa: E402
from dfkd_fast.costs.recorder import Part  # noqa: E402
from dfkd_fast.costs.roofline import estimate  # noqa: E402
from dfkd_fast.device.runtime import Runtime, make_runtime  # noqa: E402
from dfkd_fast.training.records.run_record import machine_record  # noqa: E402

CELLS = (*(f"{method}/digits" for method in METHODS), "nayer/cifar10", "ssdkd/cifar10")
CIFAR_BATCH = 16
CLOSE = 0.2
WINDOW = TimingWindow(warmup=1, steps=1, samples=5, clock=time.process_time)


def main() -> int:
    """Compare the cells that are asked for, by default all; print and append their lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", default=list(CELLS), metavar="METHOD/PRESET")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--results", type=Path, default=BENCH / "results" / "roofline-cpu.jsonl")
    options = parser.parse_args()
    runtime = make_runtime(device="cpu", precision=options.precision, channels_last=True, threads=1)
    measured, where, rows = rates(runtime), machine_record(runtime), []
    card = this_cpu(measured, where["device"])
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a", encoding="utf-8") as file:
        print(json.dumps({"measured": measured} | where), file=file, flush=True)
        for name in options.cells:
            target = cell(name)
            recording = record(target.config, target.info, runtime)
            _, timings = profile_steps(target.config, target.info, runtime, WINDOW)
            found = [*compared(target, recording, timings, card)]
            for row in found:
                print(json.dumps(row | where), file=file, flush=True)
            rows += found
            print(f"{name}: recorded and timed", flush=True)
    return show(rows)


def rates(runtime: Runtime) -> dict[str, Any]:
    """Points of this CPU in the precision of the run; what stays in float32 in it, too."""
    return calibrate("cpu", list(dict.fromkeys([torch.float32, runtime.compute_dtype])))


def this_cpu(measured: dict[str, Any], name: str) -> Card:
    """A card of measured points alone: there is no datasheet to fall back to."""
    nothing = dict.fromkeys(("bf16", "fp16", "tf32", "fp32"), 1e12)
    entry = {"name": name, "source": "", "matmul": nothing, "bandwidth": 2e10, "memory_gb": 0, "processors": 1}
    return card_of("cpu", entry | {"host_bandwidth": 2e10, "measured": measured}, table()["assumed"])


def cell(name: str) -> Target:
    """A preset, with small batches unless it is one for digits."""
    target = read_target(name)
    if target.preset == "digits":
        return target
    method = replace(target.config.method, synthesis_batch_size=CIFAR_BATCH, batch_size=CIFAR_BATCH)
    return replace(target, config=replace(target.config, method=method))


def compared(target: Target, recording: Recording, timings: Timings, card: Card) -> Iterator[dict[str, Any]]:
    """A line for each kind of step."""
    for kind, taken in timings.synthesis.items():
        told = ", ".join(f"{name} {value}" for name, value in kind.variant)
        step = f"synthesis {kind.inner}" + (f" ({told})" if told else "") + (", warm-up" if kind.warmup else "")
        yield line(target, step, recording.synthesis[kind], taken.median, card)
    feed, student = recording.feed, recording.student
    whole = Part([*student.kernels, *feed.kernels], student.calls + feed.calls)
    yield line(target, "student", whole, timings.student.median, card)


def line(target: Target, step: str, part: Part, taken: float, card: Card) -> dict[str, Any]:
    """What was predicted and what was measured of a step."""
    found = estimate(part, card, "serial")
    return {
        "cell": target.name,
        "step": step,
        "predicted_seconds": found.seconds,
        "measured_seconds": taken,
        "ratio": found.seconds / taken,
        "kernels": part.launches,
        "flops": part.flops,
        "predicted_by_group": found.by_group(),
    }


def show(rows: list[dict[str, Any]]) -> int:
    """Print the lines; the exit status."""
    for row in rows:
        times = f"{1e3 * row['predicted_seconds']:8.1f} ms predicted {1e3 * row['measured_seconds']:8.1f} measured"
        close = "" if abs(row["ratio"] - 1) <= CLOSE else "  NOT within a fifth"
        print(f"{row['cell']:22} {row['step']:55} {times}  {row['ratio']:5.2f}{close}")
    far = sum(abs(row["ratio"] - 1) > CLOSE for row in rows)
    print(f"{len(rows) - far} of {len(rows)} kinds of step within {CLOSE:.0%}")
    return int(far > 0)


if __name__ == "__main__":
    sys.exit(main())
