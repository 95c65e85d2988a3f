"""Processor seconds of a side's steps, from which a schedule is fitted to a budget: `costs.py SIDE CONFIG`.

SIDE is `ours` or `released-style`; CONFIG a recipe as both sides read it. A few steps of each kind are timed in this
process, on one thread; the last line that is printed is the result, as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
if str(BENCH) not in sys.path:
    sys.path.insert(0, str(BENCH))

import torch  # noqa: E402
from released_style.schedule import rounds  # noqa: E402
from released_style.whole_run import make_baseline, read_config  # noqa: E402

from dfkd_fast.benchmark.dry_run import teacher_info  # noqa: E402
from dfkd_fast.benchmark.step_profiler import StepProfiler  # noqa: E402
from dfkd_fast.benchmark.step_timer import TimingWindow  # noqa: E402
from dfkd_fast.config.train import TrainConfig  # noqa: E402
from dfkd_fast.costs.flops import count_step_flops  # noqa: E402
from dfkd_fast.training.assemble import runtime_of  # noqa: E402

SAMPLES = 3


@dataclass(frozen=True)
class Costs:
    """Processor seconds: of one step of a kind, of what a round takes beside its steps, and of the start."""

    warmup: float
    adversarial: float
    round: float
    student: float
    start: float

    def of(self, config: Any, *, image_size: int) -> float:
        """A whole run of a method's config, on networks for `image_size` pixels."""
        seconds = self.start
        for epoch in range(config.epochs):
            warming = epoch < config.warmup_epochs
            step = self.warmup if warming else self.adversarial
            made = rounds(config, epoch, full_size=image_size)
            seconds += made * (config.synthesis_steps * step + self.round)
            seconds += 0 if warming else config.steps_per_epoch * self.student
        return seconds


def ours(config: TrainConfig[Any]) -> Costs:
    """This package's, as a dry run measures them."""
    runtime = runtime_of(config)
    info = teacher_info(config, runtime)
    window = TimingWindow(warmup=1, samples=SAMPLES, clock=time.process_time)
    with tempfile.TemporaryDirectory(prefix="bench-race-") as folder:
        profiler = StepProfiler(config, info, runtime, Path(folder))
        count_step_flops(profiler.method, info, teacher=config.teacher, student=config.student)  # as a run does
        start = time.process_time()
        timings = profiler.measure(window)
        profiler.close()
    kinds = {
        warming: [each.median for kind, each in timings.synthesis.items() if kind.warmup == warming]
        for warming in (True, False)
    }
    later = kinds[False] or kinds[True]  # CMI may make all images in the warm-up
    return Costs(
        statistics.fmean(kinds[True] or later),
        statistics.fmean(later),
        max(timings.round.values()),
        timings.student.median,
        start,
    )


def released_style(config: TrainConfig[Any]) -> Costs:
    """The baseline's."""
    with tempfile.TemporaryDirectory(prefix="bench-race-") as folder:
        baseline, _ = make_baseline(config, Path(folder))
        start = time.process_time()
        baseline.begin_round()
        steps = [
            _median(lambda adversarial=adversarial: baseline.synthesis_step(adversarial=adversarial))
            for adversarial in (False, True)
        ]
        end = [_seconds(baseline.end_round)]
        while baseline.pool.written < (SAMPLES + 2) * config.method.batch_size:  # no smaller last batch among them
            end.append(_seconds(baseline.end_round))
        return Costs(*steps, statistics.median(end), _median(baseline.student_step), start)


SIDES: dict[str, Callable[[TrainConfig[Any]], Costs]] = {"ours": ours, "released-style": released_style}


def _median(step: Callable[[], Any]) -> float:
    step()
    return statistics.median(_seconds(step) for _ in range(SAMPLES))


def _seconds(step: Callable[[], Any]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    """Measure, and print it."""
    torch.set_num_threads(1)
    side, file = sys.argv[1:]
    print(json.dumps(asdict(SIDES[side](read_config(Path(file))))))


if __name__ == "__main__":
    main()
