"""Measure if cached answers (`--cache-teacher-logits`) pay: before a run that leaves the choice to the machine, and for
the offer of `--dry-run` where they are off.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dfkd_fast.benchmark.idle import idle_clock
from dfkd_fast.benchmark.step_profiler import StepProfiler
from dfkd_fast.benchmark.step_timer import StepTimer, TimingWindow, sample
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.work import Work, recipe_work, student_epoch
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Method, SynthBatch
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.training.logit_cache import FLAG, LogitCache, possible_views
from dfkd_fast.training.student import StudentTrainer

COUNTS = {16: 0.25, 8: 0.5}
"""answers to each image that are considered, the better first, since the student sees more of it; with each, the share
of what it saves that making the answers may take
"""
LEAST_SAVED = 0.1
"""of the student steps' time, the share that must be saved"""


@dataclass(frozen=True, kw_only=True)
class AnswerTimes:
    """Seconds of one rank, measured, and the steps and images that they are for."""

    step: float
    """of a student step that the teacher answers"""
    cached_step: float
    """of one that reads cached answers"""
    answer: float
    """of the teacher's answer to one view of one image"""
    steps: int
    """of the student, in the whole recipe"""
    images: int
    """that the recipe makes, each of which is answered"""

    def spent(self, count: int) -> float:
        """By answering `count` views of every image."""
        return count * self.images * self.answer

    def saved(self, count: int) -> float:
        """In all, what is spent taken off; negative where it does not pay."""
        return self.steps * (self.step - self.cached_step) - self.spent(count)

    def choose(self, possible: int) -> int:
        """The first of `COUNTS` that pays, or all views where there are fewer; 0 for none."""
        enough = LEAST_SAVED * self.steps * self.step
        for count, share in _counts(possible).items():
            if self.spent(count) <= share * self.saved(0) and self.saved(count) >= enough:
                return count
        return 0

    def line(self, count: int, unit: str, devices: int) -> str:
        """What `count` answers save."""
        saved, whole = (devices * seconds / 3600 for seconds in (self.saved(count), self.steps * self.step))
        steps = f"student step {1e3 * self.step:,.1f} -> {1e3 * self.cached_step:,.1f} ms"
        return f"{saved:,.3g} of {whole:,.3g} {unit} of student steps ({steps}); it changes results"


def decide(config: TrainConfig[Any], info: ModelInfo, runtime: Runtime) -> tuple[int, str]:
    """How many answers to each image a run caches that leaves it to the machine, and why. All ranks call it."""
    try:
        times, possible = measure_answers(config, info, runtime, window_on(runtime))
    except UserError as error:  # the method's student needs more than cached answers, or the pool has no room for them
        return 0, str(error).partition(": ")[2].replace("; leave it out", "")
    mine = times.choose(possible) if runtime.is_main else 0
    count = int(runtime.all_reduce(torch.tensor(mine, device=runtime.device)))
    unit = hours_of(runtime)
    if count:
        return count, f"saves {times.line(count, unit, runtime.world_size)}"
    least = min(_counts(possible))
    return 0, f"{least} would save {times.line(least, unit, runtime.world_size).partition(';')[0]}, too little"


def offer(config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, window: TimingWindow, step: float) -> str:
    """The line of a dry run about cached answers that are off and would pay; "" if they would not. `step`: seconds of a
    student step without them.
    """
    try:
        times, possible = measure_answers(config, info, runtime, window, step=step)
    except UserError:
        return ""
    count = times.choose(possible)
    return f"{FLAG} {count} would save {times.line(count, hours_of(runtime), runtime.world_size)}" if count else ""


def hours_of(runtime: Runtime) -> str:
    """What hours are called on a device."""
    return "GPU-hours" if runtime.device.type == "cuda" else "hours"


def window_on(runtime: Runtime) -> TimingWindow:
    """How long a dry run watches each kind of step, and by which clock."""
    if runtime.device.type == "cuda":
        return TimingWindow(warmup=10, steps=10, samples=5, clock=idle_clock(runtime))
    return TimingWindow(warmup=2, steps=1, samples=7, clock=idle_clock(runtime))


def measure_answers(
    config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, window: TimingWindow, step: float | None = None
) -> tuple[AnswerTimes, int]:
    """Time student steps with and without cached answers, one after the other, and the answers; returns how many views
    there are, too. `step`: seconds without, where they are known.

    Raises UserError for a method or a pool that cannot cache answers.
    """
    possible = possible_views(config.method.student_crops)
    cached = replace(config, cache_teacher_logits=min(_counts(possible)))
    cached_step, answer, method = _student_seconds(cached, info, runtime, window)
    if step is None:
        step, _, _ = _student_seconds(replace(config, cache_teacher_logits=0), info, runtime, window)
    work = _work(method)
    times = AnswerTimes(step=step, cached_step=cached_step, answer=answer, steps=work.student_steps, images=work.images)
    return times, possible


def _counts(possible: int) -> dict[int, float]:
    return {min(count, possible): share for count, share in COUNTS.items()}


def _work(method: Method) -> Work:
    """Of the whole recipe; without the steps of synthesis, which are the same either way."""
    return recipe_work(method, defaultdict(dict))


def _student_seconds(
    config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, window: TimingWindow
) -> tuple[float, float, Method]:
    """Median seconds of a student step, and of an answer to one view of one image (0 where none is cached)."""
    with tempfile.TemporaryDirectory(prefix="dfkd-fast-") as folder:
        profiler = StepProfiler(config, info, runtime, Path(folder))
        try:
            profiler.method.train()
            batches = [_filled(profiler, size) for size in (plan.image_size for plan in profiler.plans)]
            timer = StepTimer(window, runtime)
            timer.start()
            profiler.trainer.epoch(student_epoch(profiler.method), window.total, timer.on_step)
            return timer.spread().median, _answer_seconds(profiler, batches, window), profiler.method
        finally:
            profiler.close()


def _filled(profiler: StepProfiler, size: ImageSize) -> SynthBatch:
    """Fill the pool of a size with copies of a batch, which is returned: of a round, or of what fills the pool."""
    kind = next((each for each in profiler.probes if each.image_size == size), None)
    method = profiler.method
    made = profiler.step_round(kind) if kind else next(iter(method.synthesize(method.config.warmup_epochs - 1)))
    profiler.fill(made)
    return made


def _answer_seconds(profiler: StepProfiler, batches: list[SynthBatch], window: TimingWindow) -> float:
    trainer = profiler.trainer
    cache: LogitCache | None = trainer.cache if isinstance(trainer, StudentTrainer) else None
    if cache is None:
        return 0.0
    few, seconds = replace(window, warmup=1, steps=1, samples=3), 0.0
    for made in batches:
        answer = partial(cache.answers, made.images, profiler.pool[ImageSize(*made.images.shape[-2:])])
        seconds += sample(answer, few, profiler.runtime).median
    return seconds / (cache.view.count * sum(len(made.images) for made in batches))
