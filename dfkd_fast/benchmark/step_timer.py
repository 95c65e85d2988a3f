"""Steps under a clock: which are timed, how often the clock is looked at, and what was seen."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import LossTerms

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
    watch = StepTimer(window, runtime)
    watch.start()
    for _ in range(window.total):
        step()
        watch.on_step({}, 0)
    return watch.spread()


class StepTimer:
    """Looks at the clock after every so many steps."""

    def __init__(self, window: TimingWindow, runtime: Runtime) -> None:
        self.window, self.runtime = window, runtime
        self.count, self.samples, self.warmup_seconds = 0, list[float](), 0.0

    def start(self) -> None:
        self.runtime.synchronize()
        self._last = self.window.clock()

    def on_step(self, terms: LossTerms, images: int) -> None:
        """To be called after each step."""
        self.count += 1
        counted = self.count - self.window.warmup
        if counted < 0 or counted % self.window.steps:
            return
        self.runtime.synchronize()
        now = self.window.clock()
        if counted:
            self.samples.append((now - self._last) / self.window.steps)
        else:
            self.warmup_seconds += now - self._last
        self._last = now

    def spread(self) -> Quantiles:
        """Of all samples."""
        return Quantiles(statistics.median(self.samples), min(self.samples), max(self.samples))
