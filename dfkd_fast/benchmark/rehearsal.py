"""A few steps of a run, timed: the method assembled as a run does it, on random weights, in a folder of its own."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dfkd_fast.config import TrainConfig
from dfkd_fast.costs.work import SynthesisKind, Work, probe_epoch, stage_kinds
from dfkd_fast.loops.networks import check_pool_use, make_student
from dfkd_fast.loops.pools import make_pools
from dfkd_fast.loops.student import StudentTrainer
from dfkd_fast.loops.synthesis import Synthesizer
from dfkd_fast.loops.train import load_method, make_method
from dfkd_fast.methods.base import LossTerms, Method, SynthBatch
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.rng import seed_phase
from dfkd_fast.runtime import Runtime
from dfkd_fast.text import CENTRES

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Window:
    """How long each kind of step is watched."""

    warmup: int = 3
    """first steps, not counted: compilation, autotuning, caches"""
    steps: int = 1
    """steps between two looks at the clock; the device is waited for at each look"""
    samples: int = 5
    """looks"""
    clock: Clock = time.perf_counter

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.warmup + self.steps * self.samples


@dataclass(frozen=True)
class Spread:
    """Seconds of one step: the median of the samples, the least and the most."""

    median: float
    least: float
    most: float


@dataclass(kw_only=True)
class Timings:
    """What a rehearsal measured, in seconds."""

    synthesis: dict[SynthesisKind, Spread] = field(default_factory=dict)
    round: dict[SynthesisKind, float] = field(default_factory=dict)
    """what a round costs beside its steps: resets, statistics, the pool"""
    student: Spread = Spread(0.0, 0.0, 0.0)
    warmup: float = 0.0
    """the steps that were not counted: what compilation takes is in here"""
    peak_memory_bytes: int = 0

    def synthesis_seconds(self, work: Work) -> Spread:
        """Of all synthesis in `work`."""
        rounds = sum(self.round[kind] * count for kind, count in work.rounds.items())
        parts = [(self.synthesis[kind], steps) for kind, steps in work.synthesis_steps.items()]
        return Spread(
            rounds + sum(part.median * steps for part, steps in parts),
            rounds + sum(part.least * steps for part, steps in parts),
            rounds + sum(part.most * steps for part, steps in parts),
        )

    def student_seconds(self, work: Work) -> Spread:
        """Of all student steps in `work`."""
        steps = work.student_steps
        return Spread(self.student.median * steps, self.student.least * steps, self.student.most * steps)


class Rehearsal:
    """A run's method, student, pool and trainers on random weights; `measure` times their steps."""

    def __init__(self, config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, folder: Path) -> None:
        """`info` is what teacher and student agree on; pools are written to `folder`."""
        method_class = load_method(config.method_name)
        if method_class.text_sources and config.text not in (CENTRES, "one-hot"):
            config = replace(config, text="orthogonal")  # vectors of about the same width, without an encoder
        seed_phase(config.seed, 0, 0, "rehearsal")
        model, _ = load_model(
            config.teacher, num_classes=info.num_classes, image_size=info.image_size, mean=info.mean, std=info.std
        )
        teacher = FrozenNet(model, info, runtime)
        student = make_student(config, info, runtime)
        self.runtime = runtime
        self.method: Method = make_method(config, method_class, teacher, student, None, runtime)
        check_pool_use(config, self.method)
        self.pool, _ = make_pools(config.pool, folder, method=self.method, runtime=runtime)
        self.trainer = StudentTrainer(student, method=self.method, teacher=teacher, pool=self.pool, runtime=runtime)
        self.synthesizers = [Synthesizer(source, runtime) for source in self.method.sources()]

    def measure(self, window: Window) -> Timings:
        """Time every kind of synthesis step, what a round costs beside them, and student steps."""
        timings = Timings()
        self.method.train()
        for synthesizer in self.synthesizers:
            for warmup in (True, False):
                self._measure_round(synthesizer, window, timings, warmup=warmup)
        watch = _Watch(window, self.runtime)
        with _answering(self.method, "student_steps", window.total):
            watch.start()
            self.trainer.epoch(probe_epoch(self.method, warmup=False), watch.on_step)
        timings.student = watch.spread(0)
        timings.warmup += watch.warmup_seconds
        timings.peak_memory_bytes = self.runtime.peak_memory_bytes()
        return timings

    def close(self) -> None:
        """Give up the pool's files."""
        self.pool.close()

    def _measure_round(self, synthesizer: Synthesizer, window: Window, timings: Timings, *, warmup: bool) -> None:
        source = synthesizer.method
        kinds = [kind for kind, _ in stage_kinds(source, warmup=warmup)]
        epoch, watch = probe_epoch(self.method, warmup=warmup), _Watch(window, self.runtime)
        with _answering(source, "stages", (window.total,) * len(kinds)):
            watch.start()
            batch = synthesizer.round(epoch, 0, watch.on_step)
        for stage, kind in enumerate(kinds):
            timings.synthesis[kind] = watch.spread(stage)
        timings.warmup += watch.warmup_seconds
        self._fill(source, batch)
        costs = [self._round_cost(synthesizer, epoch, window) for _ in range(2)]
        steps = sum(timings.synthesis[kind].median for kind in kinds)
        timings.round[kinds[-1]] = max(0.0, min(costs) - steps)

    def _round_cost(self, synthesizer: Synthesizer, epoch: int, window: Window) -> float:
        """Seconds of a round with one step in each stage, into the pool."""
        stages = (1,) * len(synthesizer.method.stages())
        with _answering(synthesizer.method, "stages", stages):
            self.runtime.synchronize()
            start = window.clock()
            self._add(synthesizer.method, synthesizer.round(epoch, 0, _ignore))
            self.runtime.synchronize()
            return window.clock() - start

    def _fill(self, source: Method, batch: SynthBatch) -> None:
        """Fill the pool for two student batches, or as far as it goes with room left for what `_round_cost` adds."""
        pool, batch_size = self.pool[source.info.image_size], len(batch.images)
        while len(pool) < min(2 * source.config.batch_size, pool.capacity - 5 * batch_size):
            self._add(source, batch)

    def _add(self, source: Method, batch: SynthBatch) -> None:
        size = source.info.image_size
        pool = self.pool[size]
        if pool.policy == "append" and len(pool) + len(batch.images) > pool.capacity:
            return
        slots = pool.add(batch.images, batch.labels, **batch.extras)
        if size in self.trainer.priorities and batch.deltas is not None:
            self.trainer.priorities[size].update(slots, batch.deltas[: len(slots)])


def rehearse(config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, window: Window) -> tuple[Method, Timings]:
    """Assemble a run in a temporary folder and time its steps; returns its method too, which knows the recipe."""
    with tempfile.TemporaryDirectory(prefix="dfkd-fast-") as folder:
        rehearsal = Rehearsal(config, info, runtime, Path(folder))
        try:
            return rehearsal.method, rehearsal.measure(window)
        finally:
            rehearsal.close()


class _Watch:
    """Looks at the clock after every so many steps; a phase may have several stages of `window.total` steps."""

    def __init__(self, window: Window, runtime: Runtime) -> None:
        self.window, self.runtime = window, runtime
        self.count, self.samples, self.warmup_seconds = 0, [list[float]()], 0.0

    def start(self) -> None:
        self.runtime.synchronize()
        self._last = self.window.clock()

    def on_step(self, terms: LossTerms, images: int) -> None:
        """To be called after each step."""
        self.count += 1
        within = (self.count - 1) % self.window.total + 1
        counted = within - self.window.warmup
        if counted >= 0 and counted % self.window.steps == 0:
            self.runtime.synchronize()
            now = self.window.clock()
            if counted:
                self.samples[-1].append((now - self._last) / self.window.steps)
            else:
                self.warmup_seconds += now - self._last
            self._last = now
        if within == self.window.total:
            self.samples.append([])

    def spread(self, stage: int) -> Spread:
        samples = self.samples[stage]
        return Spread(statistics.median(samples), min(samples), max(samples))


@contextmanager
def _answering(method: Method, question: str, answer: object) -> Iterator[None]:
    """Let the method answer `question`, one of its own functions, with `answer` while the block runs."""
    setattr(method, question, lambda *_: answer)
    try:
        yield
    finally:
        delattr(method, question)  # the class's own again


def _ignore(terms: LossTerms, images: int) -> None:
    """What is called after a step that nobody watches."""
