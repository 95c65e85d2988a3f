"""The effect of `--cache-teacher-logits` on accuracy: SSD-KD on CIFAR-10, a quarter of the epochs, 3 seeds.

    python bench/methods/cached_answers.py --data DATA --teacher-weights TEACHERS/wrn40_2-cifar10.safetensors

runs 8 and 16 answers an image against the teacher in every step: with as many student steps, and with as many more as
take the same processor time, which is measured once and kept beside the runs. --dry-run says what all of it takes. A
finished run is never made again, one that was stopped goes on where it stopped; each adds a line to the results file,
of which the table in docs/results.md is made. Other arguments are flags of every run.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cells import TITLES, Cell
from quick import processor_seconds
from runs import Runner, read_lines
from table import table, write_between

from dfkd_fast.benchmark.answers import AnswerTimes, measure_answers
from dfkd_fast.benchmark.dry_run import teacher_info
from dfkd_fast.benchmark.step_timer import TimingWindow
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.files.write import write_file
from dfkd_fast.training.assemble import runtime_of

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (8, 16)
SEEDS = [0, 1, 2]
QUARTER = ("--epochs", "55", "--precision", "bf16", "--eval.every", "5", "--checkpoint.every", "5")
EQUAL_TIME = "equal-time.json"


@dataclass(frozen=True)
class AnswersCell(Cell):
    """A run with so many answers an image, and student steps in an epoch."""

    answers: int = 0
    steps: int | None = None
    """None: the recipe's"""
    data: str = "DATA"
    teacher: str = "TEACHERS/wrn40_2-cifar10.safetensors"
    more: tuple[str, ...] = ()
    """flags behind all others"""

    @property
    def title(self) -> str:
        """Method and variant."""
        return f"{TITLES[self.method]}, {self.variant}"

    @property
    def flags(self) -> tuple[str, ...]:
        """What differs from the preset."""
        kept = ("--cache-teacher-logits", str(self.answers)) if self.answers else ()
        steps = () if self.steps is None else ("--student-steps", str(self.steps))
        return (*QUARTER, "--data", self.data, "--teacher-weights", self.teacher, *self.more, *kept, *steps)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command line, without where anything lies on this machine."""
        public = replace(self, data="DATA", teacher="TEACHERS/wrn40_2-cifar10.safetensors")
        return super(AnswersCell, public).arguments


def same_steps(options: argparse.Namespace, more: Sequence[str], seed: int) -> list[AnswersCell]:
    """The teacher in every step, and each number of answers, over as many student steps."""
    place = {"data": options.data, "teacher": options.teacher_weights, "more": tuple(more)}
    whole = AnswersCell("ssdkd", "all views", seed, preset="cifar10", **place)
    return [whole, *(replace(whole, variant=f"{count} answers", answers=count) for count in COUNTS)]


def equal_time(cells: Sequence[AnswersCell], cache: Path) -> list[AnswersCell]:
    """Each number of answers again, over as many student steps as take the time of the teacher in every step.

    Measured for the first time, and read from the cache folder from then on: a run that goes on is the same.
    """
    whole, *kept = cells
    file = cache / EQUAL_TIME
    if not file.exists():
        times, config = _measured(whole), whole.resolved()
        epochs = config.method.epochs - config.method.warmup_epochs
        steps = {str(cell.answers): steps_in_equal_time(times, cell.answers) // epochs for cell in kept}
        cache.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps({"steps": steps, "times": vars(times)}, indent=1) + "\n")
    steps = json.loads(file.read_text())["steps"]
    return [
        replace(cell, variant=f"{cell.variant} in equal time", steps=int(steps[str(cell.answers)])) for cell in kept
    ]


def steps_in_equal_time(times: AnswerTimes, count: int) -> int:
    """Student steps with `count` answers, the answers included, that take as long as the recipe's without."""
    return int((times.steps * times.step - times.spent(count)) / times.cached_step)


def _measured(cell: AnswersCell) -> AnswerTimes:
    config: TrainConfig[Any] = cell.resolved()
    runtime = runtime_of(config)
    window = TimingWindow(warmup=2, samples=5, clock=time.process_time)
    return measure_answers(config, teacher_info(config, runtime), runtime, window)[0]


def main(arguments: Sequence[str]) -> int:
    """Make the runs that are missing, then the table; the exit status is 1 where a run is missing still."""
    options, more = _options(arguments)
    cells: list[AnswersCell] = []
    for seed in options.seeds:
        first = same_steps(options, more, seed)
        cells += [*first, *equal_time(first, options.cache)]
    if options.dry_run:
        return _predict(cells)
    runner = Runner(options.cache, options.results, jobs=options.jobs)
    try:
        complete = runner.run(cells)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    text = table(cells, read_lines(options.results))
    print(text)
    write_between(options.page, "cached-answers", text)
    return 0 if complete else 1


def _predict(cells: Sequence[AnswersCell]) -> int:
    """Processor hours of each kind of run, evaluation and checkpoints apart, and of all."""
    hours: dict[str, float] = {}
    for cell in cells:
        if cell.variant not in hours:
            hours[cell.variant] = processor_seconds(cell.resolved()) / 3600
            print(
                f"{cell.title:40} {hours[cell.variant]:6.2f} h  {cell.resolved().method.student_steps} steps an epoch"
            )
    print(f"{len(cells)} runs: {sum(hours[cell.variant] for cell in cells):.1f} processor hours")
    return 0


def _options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--data", required=True, help="CIFAR-10 as distributed")
    parser.add_argument("--teacher-weights", required=True, help="a WRN40-2 that was trained on it")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="SEED")
    parser.add_argument("--jobs", type=int, default=1, help="runs beside each other; each takes one thread")
    parser.add_argument("--dry-run", action="store_true", help="only say what the runs take, in processor time")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "cached-answers", help="where runs are kept")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "cached-answers-cpu.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    return parser.parse_known_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
