"""Whole captured steps of every method in bf16 beside the same steps as Python, from the same seed.

Steps on a GPU need not give the same bits twice: some operators add by atomics. So the steps run as Python twice, and
how far these two are apart is what the captured ones are allowed, times `SLACK`. cuDNN's search by time is off, and
cuBLAS has the same workspace on every stream: they could choose other algorithms for each.

Loss terms, gradients and statistics are compared, each tensor by its norm; weights are not. Adam's first steps are as
long for a gradient of rounding errors as for any other, so weights of two sound runs may differ by all of a step, while
the optimisers' averages of gradients (Adam's first moment, SGD's momentum) are linear in them.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from step_report import StepReport, open_report
from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd_fast.benchmark.step_profiler import StepProfiler
from dfkd_fast.catalog import METHODS
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.costs.work import student_epoch
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.rng import seed_phase
from dfkd_fast.training.capture import WARM_UP_STEPS
from dfkd_fast.training.inner import bind, watched

INFO = ModelInfo(name="cnn", num_classes=10, image_size=32, mean=(0.3,) * 3, std=(0.4,) * 3)
SLACK = 4.0
"""how many times as far apart as two runs of Python a captured one may be: its extremes come of a sample of one"""
FLOORS = {"terms": 2.0**-4, "gradients": 2.0**-2, "statistics": 2.0**-3}
"""of a tensor's size: what is always allowed. With each gradient disturbed by 2^-8 of itself, as by other sums,
terms were 0.014 apart, gradients 0.22, statistics 0.07, and weights 0.32
"""
NOTHING_SAID = 1.0
"""of a tensor's size: where so much is allowed, a captured run with nothing in common would pass"""
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
OWN = {"hidfd": {"warmup_epochs": 3}}
"""what else a method needs to have rounds in both epochs: its GAN learns in the warm-up alone"""
TINY = {
    **dict.fromkeys(("synthesis_steps", "student_steps", "student_steps_per_round"), 2),
    **dict.fromkeys(("synthesis_batch_size", "batch_size"), 12),
    **dict.fromkeys(("generator_width", "noise_features", "latent_dim"), 8),
    **dict.fromkeys(("bank_size", "num_negatives", "synthetic_images", "buffer_size"), 24),
}
"""of a rehearsal"""


def results(name: str, device: str, precision: str, *, graphs: bool, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Loss terms of every step in two rounds and a student epoch, and what gradients and statistics are then, on the
    CPU. The keys begin as those of `FLOORS`, or with "weights", which are for the record.
    """
    config = load_config(default_config(name), preset="digits")
    settable = {item.name for item in fields(config.method)}
    sizes = sizes | OWN.get(name, {})
    method = replace(config.method, **{key: value for key, value in sizes.items() if key in settable})
    config = replace(config, method=method, teacher="cnn", student="cnn_s", train_teacher=False)
    runtime = make_runtime(device=device, precision=precision, channels_last=True, graphs=graphs, threads=None)
    torch.backends.cudnn.benchmark = False
    found: dict[str, Tensor] = {}

    def on_step(terms: dict[str, Tensor], _images: int) -> None:
        found[f"terms/{len(found)}"] = torch.stack([terms[key].float() for key in sorted(terms)])

    with tempfile.TemporaryDirectory() as folder:
        run = StepProfiler(config, INFO, runtime, Path(folder))
        try:
            run.method.train()
            engines = bind(run.method, runtime)  # all steps, where the profiler takes few
            for epoch in (0, 2):
                seed_phase(0, 0, epoch, "synthesis")
                for makes in getattr(run.method, "scales", [run.method]):  # a round of each size
                    with watched(engines, on_step):
                        batch = next(iter(makes.synthesize(epoch)), None)  # None: real images are read once
                    if run.method.loop == "alternating" and batch is not None:
                        run.trainer.store(batch)
                for place, engine in enumerate(engines):
                    engine.taken(epoch)
                    found |= gradients(f"gradients/{epoch}/{place}", engine.optimizers)
            epoch = student_epoch(run.method)
            seed_phase(0, 0, epoch, "distillation")
            run.trainer.epoch(epoch, config.method.steps_per_epoch, on_step)
            found |= gradients("gradients/student", [run.trainer.optimizer])
            for owner, module in (("method", run.method), ("student", run.trainer.student)):
                found |= state(owner, module)
            return {key: value.detach().float().cpu().clone() for key, value in found.items()}
        finally:
            run.close()


def gradients(prefix: str, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Copies of the optimisers' averages of gradients, by parameter."""
    found = {}
    for number, optimizer in enumerate(optimizers):
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        for place, parameter in enumerate(parameters):
            kept = optimizer.state[parameter]
            average = kept["exp_avg"] if "exp_avg" in kept else kept["momentum_buffer"]
            found[f"{prefix}/{number}/{place}"] = average.detach().clone()  # the next round begins with zeros
    return found


def state(owner: str, module: nn.Module) -> dict[str, Tensor]:
    """What of a module's state the steps write themselves, and what the optimiser writes."""
    learned = dict(module.named_parameters())
    return {
        f"{'weights' if key in learned else 'statistics'}/{owner}/{key}": value
        for key, value in module.state_dict().items()
    }


def distance(first: dict[str, Tensor], second: dict[str, Tensor], kind: str) -> float:
    """The largest difference of two tensors of a kind, in parts of their size, by norms; infinite where either is not
    finite or has no partner.

    A gradient's size is at least what its elements would have if all of its optimiser were alike: of a bias before
    BatchNorm there is nothing but rounding errors.
    """
    ours, theirs = (
        {key: value for key, value in each.items() if key.startswith(f"{kind}/")} for each in (first, second)
    )
    if ours.keys() != theirs.keys():
        return math.inf
    worst = 0.0
    for key, value in ours.items():
        apart = float((value - theirs[key]).norm())
        if not math.isfinite(apart):
            return math.inf
        worst = max(worst, apart / max(float(value.norm()), usual(ours, key), 1e-12))
    return worst


def usual(values: dict[str, Tensor], key: str) -> float:
    """The norm that a gradient would have with elements of its optimiser's usual size; 0 for anything else."""
    if not key.startswith("gradients/"):
        return 0.0
    group = [value for other, value in values.items() if other.rpartition("/")[0] == key.rpartition("/")[0]]
    square = sum(float(value.square().sum()) for value in group) / sum(value.numel() for value in group)
    return math.sqrt(square * values[key].numel())


def judge(report: StepReport, name: str, runs: Sequence[dict[str, Tensor]]) -> None:
    """The row of a method: two runs of Python, and the captured one."""
    first, second, replayed = runs
    apart = {kind: distance(first, second, kind) for kind in FLOORS}
    found = {kind: distance(first, replayed, kind) for kind in FLOORS}
    allowed = {kind: SLACK * apart[kind] + floor for kind, floor in FLOORS.items()}
    told = {f"{kind}_off": found[kind] for kind in FLOORS} | {f"{kind}_allowed": allowed[kind] for kind in FLOORS}
    told["weights_off"] = distance(first, replayed, "weights")
    within = all(found[kind] <= allowed[kind] for kind in FLOORS)
    says_nothing = [kind for kind in FLOORS if allowed[kind] > NOTHING_SAID]
    if within and says_nothing:
        report.not_run(name, f"two runs of Python are too far apart to compare with, in {', '.join(says_nothing)}")
    else:
        report.row(name, ok=within, **told)


def main() -> int:
    """A row for each method; a method that fails does not keep the others from running."""
    report = open_report("replay", __doc__)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    sizes, where = {**SMALL, **TINY} if report.rehearse else SMALL, (report.device, "bf16")
    if report.rehearse:
        torch.set_num_threads(1)
        where = (report.device, "fp32")
    for name in (name for name in METHODS if name not in report.done):
        try:
            first = results(name, *where, graphs=False, sizes=sizes)
            # without a card there is nothing to capture, and a CPU gives the same bits twice
            second = first if report.rehearse else results(name, *where, graphs=False, sizes=sizes)
            replayed = first if report.rehearse else results(name, *where, graphs=True, sizes=sizes)
        except Exception as error:
            words = next(iter(str(error).strip().splitlines()), "")
            report.row(name, ok=False, error=f"{type(error).__name__}: {words[:150]}")
            continue
        judge(report, name, (first, second, replayed))
    return report.status()


if __name__ == "__main__":
    sys.exit(main())
