"""Whole captured steps of every method in bf16 beside the same steps as Python, from the same seed.

Steps on a GPU need not give the same bits twice: some operators add by atomics. So the steps run as Python twice, and
how far these two are apart is what the captured ones are allowed, times `SLACK`. cuDNN's search by time is off: it
could choose other algorithms for each.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from step_report import open_report
from torch import Tensor

from dfkd_fast.benchmark.rehearsal import Rehearsal
from dfkd_fast.catalog import METHODS
from dfkd_fast.config_sources import default_config, load_config
from dfkd_fast.loops.steps import WARM_UP_STEPS
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.rng import seed_phase
from dfkd_fast.runtime import make_runtime

INFO = ModelInfo(name="cnn", num_classes=10, image_size=32, mean=(0.3,) * 3, std=(0.4,) * 3)
SLACK = 4.0
"""how many times as far apart as two runs of Python a captured one may be: its extremes come of a sample of one"""
FLOOR = 2.0**-7
"""of a tensor's size: what is always allowed, a step of bf16"""
STEPS = WARM_UP_STEPS + 3
SMALL = {
    "epochs": 4,
    "warmup_epochs": 1,
    "warmup_rounds": 8,  # one is run: the pool has room for what so many would make
    "rounds": 8,
    "synthesis_steps": STEPS,
    "low_res_steps": 1,
    "student_steps": STEPS,
    "student_steps_per_round": STEPS,
}
TINY = {
    **dict.fromkeys(("synthesis_steps", "student_steps", "student_steps_per_round"), 2),
    **dict.fromkeys(("synthesis_batch_size", "batch_size"), 12),
    **dict.fromkeys(("generator_width", "noise_features", "latent_dim"), 8),
    **dict.fromkeys(("bank_size", "num_negatives", "synthetic_images", "buffer_size"), 24),
}
"""of a rehearsal"""


def results(name: str, device: str, precision: str, *, graphs: bool, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Loss terms of every step in two rounds and a student epoch, and what student and method are then, on the CPU."""
    config = load_config(default_config(name), preset="digits")
    settable = {item.name for item in fields(config.method)}
    method = replace(config.method, **{key: value for key, value in sizes.items() if key in settable})
    config = replace(config, method=method, teacher="cnn", student="cnn_s", train_teacher=False)
    runtime = make_runtime(device=device, precision=precision, channels_last=True, graphs=graphs, threads=None)
    torch.backends.cudnn.benchmark = False
    terms: list[Tensor] = []

    def on_step(found: dict[str, Tensor], _images: int) -> None:
        terms.append(torch.stack([found[key].float() for key in sorted(found)]))

    with tempfile.TemporaryDirectory() as folder:
        run = Rehearsal(config, INFO, runtime, Path(folder))
        try:
            run.method.train()
            for epoch in (0, 2):
                seed_phase(0, 0, epoch, "synthesis")
                for synthesizer in run.synthesizers:
                    batch = synthesizer.round(epoch, 0, on_step)
                    if synthesizer.method.loop == "alternating":
                        run.trainer.store(synthesizer.method.info.image_size, batch)
            seed_phase(0, 0, 2, "distillation")
            run.trainer.epoch(2, on_step)
            state: dict[str, Any] = {f"method/{key}": value for key, value in run.method.state_dict().items()}
            state |= {f"student/{key}": value for key, value in run.trainer.student.state_dict().items()}
            state |= {f"terms/{index}": value for index, value in enumerate(terms)}
            return {key: value.detach().float().cpu().clone() for key, value in state.items()}
        finally:
            run.close()


def distance(first: dict[str, Tensor], second: dict[str, Tensor], prefix: str) -> float:
    """The largest difference of two tensors, of those with a prefix, in parts of the larger one's size."""
    worst = 0.0
    for key, value in first.items():
        if key.startswith(prefix) and value.numel():
            size = value.abs().max().clamp_min(1e-6)
            worst = max(worst, float((value - second[key]).abs().max() / size))
    return worst


def main() -> int:
    """A row for each method; a method that fails does not keep the others from running."""
    report = open_report("replay", __doc__)
    sizes, where = {**SMALL, **TINY} if report.rehearse else SMALL, (report.device, "bf16")
    if report.rehearse:
        torch.set_num_threads(1)
        where = (report.device, "fp32")
    for name in METHODS:
        try:
            first = results(name, *where, graphs=False, sizes=sizes)
            # without a card there is nothing to capture, and a CPU gives the same bits twice
            second = first if report.rehearse else results(name, *where, graphs=False, sizes=sizes)
            replayed = first if report.rehearse else results(name, *where, graphs=True, sizes=sizes)
        except Exception as error:
            words = next(iter(str(error).strip().splitlines()), "")
            report.row(name, ok=False, error=f"{type(error).__name__}: {words[:150]}")
            continue
        apart = {prefix: distance(first, second, prefix) for prefix in ("terms/", "student/", "method/")}
        found = {prefix: distance(first, replayed, prefix) for prefix in apart}
        allowed = {prefix: SLACK * value + FLOOR for prefix, value in apart.items()}
        ok = first.keys() == replayed.keys() and all(found[prefix] <= allowed[prefix] for prefix in apart)
        told = {f"{prefix[:-1]}_off": found[prefix] for prefix in apart}
        told |= {f"{prefix[:-1]}_allowed": allowed[prefix] for prefix in apart}
        report.row(name, ok=ok, **told)
    return report.status()


if __name__ == "__main__":
    sys.exit(main())
