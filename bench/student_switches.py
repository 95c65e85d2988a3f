"""`make bench SUITE=switches`: processor time of a student step with each switch of the student, over one without any.

ResNet-56 to ResNet-20, 32 px, batch 128, float32, one thread, random weights. Settings take turns, a step each; what is
kept is the median of the ratios to the plain step of the same turn, and the lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch

from dfkd_fast.benchmark.step_profiler import StepProfiler
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.methods.base import SynthBatch
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.training.records.run_record import machine_record

RESULTS = Path(__file__).resolve().parent / "results" / "student-switches-cpu.jsonl"
RECIPE = ("--epochs", "4", "--warmup-epochs", "1", "--threads", "1", "--precision", "fp32", "--student-lr", "1e-3")
NETWORKS = ("--teacher", "resnet56", "--student", "resnet20", "--batch-size", "128", "--synthesis-batch-size", "128")
SWITCHES = {
    "plain": (),
    "mixup": ("--student-mix", "mixup"),
    "cutmix": ("--student-mix", "cutmix"),
    "both": ("--student-mix", "both"),
    "nesterov": ("--student-optimizer", "nesterov"),
    "adamw": ("--student-optimizer", "adamw"),
    "muon": ("--student-optimizer", "muon"),
    "one-cycle": ("--student-schedule", "one-cycle"),
    "8 cached answers": ("--cache-teacher-logits", "8"),
    "8 cached answers, both": ("--cache-teacher-logits", "8", "--student-mix", "both"),
}


def profiler_of(flags: tuple[str, ...], networks: tuple[str, ...], folder: str) -> StepProfiler:
    """NAYER's student with these settings, and a pool of noise."""
    config = load_config(default_config("nayer"), preset="digits", flags=[*RECIPE, *networks, *flags])
    runtime = make_runtime(device="cpu", precision="fp32", threads=1)
    info = ModelInfo(name="", num_classes=10, image_size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    profiler = StepProfiler(config, info, runtime, Path(folder))
    count = config.method.synthesis_batch_size
    images = runtime.place(torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    profiler.fill(SynthBatch(images, torch.arange(count) % 10))
    profiler.trainer.begin_epoch(1)
    return profiler


def main() -> None:
    """Race them; print and append a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="flags of other networks")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in SWITCHES}
    with ExitStack() as stack:
        folders = {name: stack.enter_context(tempfile.TemporaryDirectory()) for name in SWITCHES}
        made = {name: profiler_of(flags, tuple(options.networks), folders[name]) for name, flags in SWITCHES.items()}
        for turn in range(options.turns + 1):  # the first is thrown away
            for name, profiler in made.items():
                start = time.process_time()
                profiler.trainer.steps(1, lambda terms, images: None)
                if turn:
                    seconds[name].append(time.process_time() - start)
        for profiler in made.values():
            stack.callback(profiler.close)
    ratios = {
        name: [one / plain for one, plain in zip(spent, seconds["plain"], strict=True)]
        for name, spent in seconds.items()
    }
    found = {name: [median(each), min(each), max(each)] for name, each in ratios.items()}
    machine = machine_record(make_runtime(device="cpu", precision="fp32", threads=1))
    line = {"networks": options.networks, "turns": options.turns, "plain_seconds": median(seconds["plain"])}
    with options.results.open("a", encoding="utf-8") as results:
        results.write(json.dumps({**line, "ratios": found, **machine}) + "\n")
    for name, (middle, low, high) in found.items():
        print(f"{name:24}{middle:6.2f}  ({low:.2f} to {high:.2f})")
    print(f"plain: {line['plain_seconds']:.3f} s")


if __name__ == "__main__":
    main()
