"""The stepwise loop: a generator step or a few, then student steps on what it makes now; a checkpoint after each epoch.

An epoch is one phase, distillation (a warm-up epoch, in which only the generator learns: synthesis).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dfkd_fast.device.compilation import CLOCK
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import PoolPlan, SynthBatch
from dfkd_fast.training.checkpoints.checkpoint import PHASES
from dfkd_fast.training.failures import explained
from dfkd_fast.training.inner import watched
from dfkd_fast.training.loop import Loop


class StepwiseLoop(Loop):
    """Runs the epochs of a method whose generator and student take turns every few steps."""

    image_phases = PHASES
    newest: SynthBatch
    """what the generator has made last"""

    def run(self, *, first: tuple[int, str], stop_after: int | None) -> None:
        epochs = self.method.config.epochs
        done = first[1] == PHASES[1]  # of the phases of a warm-up epoch there is only the first
        for epoch in range(first[0] + done, min(epochs, stop_after or epochs)):
            self._epoch(epoch)

    def newest_images(self, plan: PoolPlan) -> tuple[Tensor, Tensor]:
        return self.newest.images, self.newest.labels

    def learning(self, phase: str) -> Sequence[str]:
        return PHASES[::-1] if phase == PHASES[1] else (phase,)

    def _epoch(self, epoch: int) -> None:
        is_warmup = epoch < self.method.config.warmup_epochs
        phase = PHASES[0] if is_warmup else PHASES[1]
        steps = 0 if is_warmup else self.method.config.steps_per_epoch
        synthesis = Stopwatch(self.runtime)
        self._rounds(phase, epoch, steps, synthesis)
        spent = self.progress
        for seconds, made in (
            (spent.seconds, synthesis.seconds()),
            (spent.processor_seconds, synthesis.processor_seconds),
        ):
            seconds[phase] -= made
            seconds["synthesis"] += made
        if not is_warmup:
            self._evaluation(epoch)
        self._boundary(epoch, phase)

    def _rounds(self, phase: str, epoch: int, student_steps: int, synthesis: Stopwatch) -> None:
        """All rounds of an epoch; what their generator steps take is on the stopwatch."""
        rounds, made = self.method.rounds(epoch), iter(self.method.synthesize(epoch))
        phase_of = self._phase(phase, epoch, rounds * self.method.config.synthesis_steps + student_steps)
        with phase_of as on_step, watched(self.engines, on_step):
            self.method.train()
            if student_steps:
                self.trainer.begin_epoch(epoch)
            for index in range(rounds):
                with explained("synthesis", epoch, self.method.config, self.runtime), synthesis.running():
                    newest = next(made, None)
                    assert newest is not None, f"{index} batches of the {rounds} that the method promised"
                    self.newest = newest
                before, after = (student_steps * part // rounds for part in (index, index + 1))
                self.trainer.steps(after - before, on_step)
            self.trainer.end_epoch()  # also of a warm-up: synthesis may have moved the student's statistics
            if any(engine.inner.shared for engine in self.engines):
                self.runtime.average_buffers(self.method)  # each rank's generator has seen its own images, one is saved
            images = student_steps * self.method.config.batch_size * self.runtime.shares
            generator_steps = sum(engine.counted() for engine in self.engines)
            self.progress.counts.update(
                generator_steps=generator_steps, student_steps=student_steps, images_synthesized=images
            )


class Stopwatch:
    """Seconds that the device spends in blocks, added up without waiting for it. Preparation does not count."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.processor_seconds = 0.0
        """processor time that this thread spends in the blocks"""
        self._laps: list[tuple[Any, Any]] = []
        self._prepared = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what the block takes."""
        start, prepared, processor = self._now(), CLOCK.seconds, time.thread_time()
        yield
        self.processor_seconds += time.thread_time() - processor
        self._laps.append((start, self._now()))
        self._prepared += CLOCK.seconds - prepared

    def seconds(self) -> float:
        """Of all blocks. Waits for the device."""
        self.runtime.synchronize()
        if self.runtime.device.type == "cuda":
            total = sum(start.elapsed_time(end) for start, end in self._laps) / 1000
        else:
            total = sum(end - start for start, end in self._laps)
        return max(0.0, total - self._prepared)

    def _now(self) -> Any:
        if self.runtime.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.runtime.device))
        return event
