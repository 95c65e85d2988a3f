"""The alternating loop: each epoch makes images, then teaches the student; a checkpoint stands at every boundary."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dfkd_fast.checkpoint import (
    PHASES,
    Checkpoint,
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    part_tensors,
)
from dfkd_fast.loggers import RunLogger
from dfkd_fast.loops.interrupt import StopSignals
from dfkd_fast.loops.student import StudentTrainer
from dfkd_fast.loops.synthesis import Synthesizer
from dfkd_fast.methods.base import LossTerms, Method
from dfkd_fast.pool.pool import Pool
from dfkd_fast.rng import seed_phase
from dfkd_fast.runtime import Runtime


@dataclass(kw_only=True)
class Progress:
    """What a run has done and measured so far; part of every checkpoint."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """wall seconds by phase: synthesis, distillation, evaluation"""
    counts: Counter[str] = field(default_factory=Counter)
    """images_synthesized, generator_steps, student_steps"""
    last_evaluation: dict[str, float] = field(default_factory=dict)
    """top1, top5 and agreement of the newest evaluation"""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"seconds": dict(self.seconds), "counts": dict(self.counts), "last_evaluation": self.last_evaluation}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Progress:
        """The inverse of `record`."""
        return cls(
            seconds=defaultdict(float, record["seconds"]),
            counts=Counter(record["counts"]),
            last_evaluation=record["last_evaluation"],
        )


@dataclass(kw_only=True)
class AlternatingLoop:
    """Runs the epochs of a method that alternates between synthesis and distillation.

    Either phase may be empty: warm-up epochs only make images, and an epoch without rounds only teaches. All images
    first, then the student, is the schedule whose rounds are all in the warm-up.
    """

    method: Method
    student: nn.Module
    trainer: StudentTrainer
    pool: Pool
    runtime: Runtime
    logger: RunLogger
    signals: StopSignals
    seed: int
    evaluate: Callable[[int], dict[str, float]]
    """evaluates the deployed student after an epoch; {} where that epoch is not evaluated"""
    save: Callable[[Checkpoint], None]
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.synthesizer = Synthesizer(self.method, self.runtime)
        self._scalers = (self.synthesizer.scaler, self.trainer.scaler)

    def run(self, *, first: tuple[int, str], stop_after: int | None) -> None:
        """Run from the phase `first` (epoch, phase) to the end, or to the end of epoch number `stop_after`
        (1-based).
        """
        config = self.method.config
        for epoch in range(first[0], min(config.epochs, stop_after or config.epochs)):
            if (epoch, PHASES[1]) != first:
                self._synthesis(epoch)
            if epoch >= config.warmup_epochs:
                self._distillation(epoch)

    def _synthesis(self, epoch: int) -> None:
        config, rounds = self.method.config, self.method.rounds(epoch)
        if not rounds:
            return
        with self._phase("synthesis", epoch, rounds * config.synthesis_steps) as on_step:
            self.method.train()
            for index in range(rounds):
                batch = self.synthesizer.round(epoch, index, on_step)
                slots = self.pool.add(batch.images, batch.labels, **batch.extras)
                if self.trainer.priorities is not None:
                    assert batch.deltas is not None, "a pool with priorities needs those of new images"
                    self.trainer.priorities.update(slots, batch.deltas[: len(slots)])
                self.progress.counts["images_synthesized"] += len(batch.images)
                self.progress.counts["generator_steps"] += config.synthesis_steps
        self._boundary(epoch, "synthesis")

    def _distillation(self, epoch: int) -> None:
        steps = self.method.config.student_steps
        with self._phase("distillation", epoch, steps) as on_step:
            self.trainer.epoch(epoch, on_step)
            self.progress.counts["student_steps"] += steps
        with self._timed("evaluation"):
            result = self.evaluate(epoch)
        if result:
            self.progress.last_evaluation = result
            self.logger.record(epoch=epoch, phase="evaluation", **result)
        self._boundary(epoch, "distillation")

    @contextmanager
    def _phase(self, name: str, epoch: int, steps: int) -> Iterator[Callable[[LossTerms, int], None]]:
        """Reseed, time and report one phase; the block gets the function to call after each step."""
        seed_phase(self.seed, self.runtime.rank, epoch, name)
        with self._timed(name), self.logger.phase(name, epoch, steps) as meter:

            def on_step(terms: LossTerms, images: int) -> None:
                meter.step(terms, images)
                self.signals.check()

            yield on_step

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.runtime.synchronize()
        self.progress.seconds[name] += time.perf_counter() - start

    def _boundary(self, epoch: int, phase: str) -> None:
        tensors = module_tensors("student", self.student) | module_tensors("method", self.method)
        tensors |= optimizer_tensors("optimizer", self.trainer.optimizer)
        if self.trainer.priorities is not None:
            tensors |= {f"priorities/{name}": value for name, value in self.trainer.priorities.state_dict().items()}
        for lasting in self.synthesizer.optimizers[1:]:
            tensors |= optimizer_tensors("synthesis_optimizer", lasting)
        scalers = [scaler.state_dict() for scaler in self._scalers]
        record = {"pool": self.pool.flush(), "scalers": scalers, **self.progress.record()}
        self.save(Checkpoint(epoch=epoch, phase=phase, tensors=tensors, record=record))

    def restore(self, checkpoint: Checkpoint) -> tuple[int, str]:
        """Take up the state of a checkpoint, in place; returns the phase to run next."""
        load_module("student", self.student, checkpoint.tensors)
        load_module("method", self.method, checkpoint.tensors)
        load_optimizer("optimizer", self.trainer.optimizer, checkpoint.tensors)
        if self.trainer.priorities is not None:
            self.trainer.priorities.load_state_dict(part_tensors("priorities", checkpoint.tensors))
        for lasting in self.synthesizer.optimizers[1:]:
            load_optimizer("synthesis_optimizer", lasting, checkpoint.tensors)
        for scaler, state in zip(self._scalers, checkpoint.record["scalers"], strict=True):
            scaler.load_state_dict(state)
        self.pool.restore(checkpoint.record["pool"])
        self.progress = Progress.from_record(checkpoint.record)
        if checkpoint.phase == PHASES[0]:
            return checkpoint.epoch, PHASES[1]
        return checkpoint.epoch + 1, PHASES[0]
