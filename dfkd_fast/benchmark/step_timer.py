"""Steps under a clock: which are timed, how often it is looked at, what was seen; and the engine that does so."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from dfkd_fast.costs.work import RoundKind, SynthesisKind
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import LossTerms
from dfkd_fast.methods.inner import Inner, LrScale, Variant, key_of
from dfkd_fast.parallel.global_batch import GlobalBatch
from dfkd_fast.training.capture import StepRunner
from dfkd_fast.training.inner import InnerLoop, ignore

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class TimingWindow:
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
class Quantiles:
    """Seconds of one step: the median of the samples, the least and the most."""

    median: float = 0.0
    least: float = 0.0
    most: float = 0.0

    def times(self, factor: float) -> Quantiles:
        """Of something `factor` times as large."""
        return Quantiles(factor * self.median, factor * self.least, factor * self.most)


def sample(step: Callable[[], object], window: TimingWindow, runtime: Runtime) -> Quantiles:
    """Time calls of `step`, as a phase's steps are timed."""
    timer = StepTimer(window, runtime)
    timer.start()
    for _ in range(window.total):
        step()
        timer.on_step({}, 0)
    return timer.spread()


class StepTimer:
    """Looks at the clock after every so many steps."""

    def __init__(self, window: TimingWindow, runtime: Runtime) -> None:
        self.window, self.runtime = window, runtime
        self.count, self.samples, self.warmup_seconds = 0, list[float](), 0.0
        self.counted_seconds = self.wall_seconds = 0.0
        """of all samples together, by the window's clock and by the wall"""

    def start(self) -> None:
        self.runtime.synchronize()
        self._last, self._wall = self.window.clock(), time.perf_counter()

    def on_step(self, terms: LossTerms, images: int) -> None:
        """To be called after each step."""
        self.count += 1
        counted = self.count - self.window.warmup
        if counted < 0 or counted % self.window.steps:
            return
        self.runtime.synchronize()
        now, wall = self.window.clock(), time.perf_counter()
        if counted:
            self.samples.append((now - self._last) / self.window.steps)
            self.counted_seconds += now - self._last
            self.wall_seconds += wall - self._wall
        else:
            self.warmup_seconds += now - self._last
        self._last, self._wall = now, wall

    def spread(self) -> Quantiles:
        """Of all samples."""
        return Quantiles(statistics.median(self.samples), min(self.samples), max(self.samples))


class TimedLoop(InnerLoop):
    """Takes few of the steps that it is asked for: one of each kind in a round, or as many as a window times."""

    def __init__(self, place: int, inner: Inner, runtime: Runtime, global_batch: GlobalBatch) -> None:
        super().__init__(inner, runtime, global_batch)
        self.place = place
        self.window: TimingWindow | None = None
        """times each kind of step that is not among `found`"""
        self.found: dict[SynthesisKind, Quantiles] = {}
        self.timers: list[StepTimer] = []
        """of the windows"""
        self.clock: Clock | None = None
        """adds up `step_seconds`; waits for the device around each step"""
        self.step_seconds = 0.0
        self.run_step = self._clocked(self.run_step)
        self._stepped: set[SynthesisKind] = set()
        self._is_warmup = True

    def begin_round(self, kind: RoundKind) -> None:
        """Before a round of a kind."""
        self._is_warmup, self._stepped = kind.warmup, set()

    def is_over(self, taken: int) -> bool:
        """Never: what is timed are steps, and patience may take all of them."""
        return False

    def run(self, steps: int, lr_scale: LrScale, variant: Variant) -> Any:
        kind = SynthesisKind(self.place, key_of(variant), self._is_warmup)
        if kind in self._stepped:
            return self.best
        self._stepped.add(kind)
        if self.window is None or kind in self.found:
            return super().run(1, lr_scale, variant)
        timer = StepTimer(self.window, self.runtime)
        self.on_step = timer.on_step
        timer.start()
        made = super().run(self.window.total, _within(lr_scale, steps), variant)
        self.on_step = ignore
        self.found[kind] = timer.spread()
        self.timers.append(timer)
        return made

    def _clocked(self, run_step: StepRunner) -> StepRunner:
        def clocked(variant: Hashable, *inputs: Any) -> LossTerms:
            if self.clock is None:
                return run_step(variant, *inputs)
            self.runtime.synchronize()
            start = self.clock()
            terms = run_step(variant, *inputs)
            self.runtime.synchronize()
            self.step_seconds += self.clock() - start
            return terms

        return clocked


def _within(lr_scale: LrScale, steps: int) -> LrScale:
    """The same for more than so many steps: a method's schedule may have no value behind its last."""
    return (lambda step: lr_scale(min(step, steps - 1))) if callable(lr_scale) else lr_scale
