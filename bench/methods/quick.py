"""The digits-quick presets: what they cost of the digits presets, and how they stand beside them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cells import PRESET, QUICK, THREADS, TITLES, Recipe, method_cells
from runs import Runner
from table import Line, newest, origin

from dfkd_fast.benchmark.dry_run import teacher_info
from dfkd_fast.benchmark.step_profiler import StepProfiler
from dfkd_fast.benchmark.step_timer import TimingWindow
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.flops import count_step_flops
from dfkd_fast.costs.work import recipe_work
from dfkd_fast.training.assemble import runtime_of

HEAD = (
    "| method | digits-quick: mean (lowest to highest) | digits, the same seeds | share of the accuracy "
    "| share of the time | images | generator + student steps |\n|---|---|---|---|---|---|---|"
)


class QuickRunner(Runner):
    """Adds to a line what the preset's steps take of those of the digits preset."""

    def added(self, recipe: Recipe) -> dict[str, Any]:
        """The share of the processor time, teacher, evaluation and checkpoints apart."""
        return {"time_share": time_share(recipe.cell.method)}


def time_share(method: str) -> float:
    """Processor time of both phases, digits-quick to digits: a few steps on random weights, projected."""
    quick, whole = (processor_seconds(_config(method, preset)) for preset in (QUICK, PRESET))
    return quick / whole


def processor_seconds(config: TrainConfig[Any]) -> float:
    """Of both phases of a run, projected from a few steps on random weights."""
    runtime = runtime_of(config)
    info = teacher_info(config, runtime)
    window = TimingWindow(warmup=1, samples=3, clock=time.process_time)
    with tempfile.TemporaryDirectory(prefix="bench-quick-") as folder:
        profiler = StepProfiler(config, info, runtime, Path(folder))
        timings, method = profiler.measure(window), profiler.method
        profiler.close()
    flops = count_step_flops(method, info, teacher=config.teacher, student=config.student)
    work = recipe_work(method, flops.round_steps)
    return timings.synthesis_seconds(work).median + timings.student_seconds(work).median


def quick_table(methods: Sequence[str], seeds: Sequence[int], lines: Sequence[Line]) -> str:
    """A row for each method, over the seeds that its quick preset has been run with, those of the digits preset beside.

    A run counts as in `table`.
    """
    known = newest(lines)
    rows, used = [], []
    for method in methods:
        quick = _runs(method, seeds, known, QUICK)
        whole = _runs(method, [line["seed"] for line in quick], known, PRESET)
        used += quick
        rows.append(_row(TITLES[method], quick, whole))
    return "\n".join([HEAD, *rows]) + (f"\n\n{origin(used)}" if used else "")


def _config(method: str, preset: str) -> TrainConfig[Any]:
    return load_config(default_config(method), preset=preset, flags=["--threads", str(THREADS)])


def _runs(method: str, seeds: Sequence[int], known: dict[str, Line], preset: str) -> list[Line]:
    found = (known.get(Recipe.of(cell).recipe_hash) for cell in method_cells([method], list(seeds), preset=preset))
    return [line for line in found if line is not None]


def _row(title: str, quick: Sequence[Line], whole: Sequence[Line]) -> str:
    if not quick:
        return f"| {title} | not measured |  |  |  |  |  |"
    top1 = fmean(line["top1_last"] for line in quick)
    beside = fmean(line["top1_last"] for line in whole) if len(whole) == len(quick) else None
    share = fmean(line["time_share"] for line in quick)
    cells = (
        title,
        _spread(quick),
        "not measured" if beside is None else f"{100 * beside:.2f} %",
        "" if beside is None else f"{top1 / beside:.3f}",
        f"{100 * share:.0f} %",
        f"{fmean(line['images_synthesized'] for line in quick):,.0f}",
        " + ".join(f"{fmean(line[key] for line in quick):,.0f}" for key in ("generator_steps", "student_steps")),
    )
    return f"| {' | '.join(cells)} |"


def _spread(lines: Sequence[Line]) -> str:
    top1 = [100 * line["top1_last"] for line in lines]
    where = f"{min(top1):.2f} to {max(top1):.2f}" if len(top1) > 1 else f"seed {lines[0]['seed']}"
    return f"{fmean(top1):.2f} % ({where})"
