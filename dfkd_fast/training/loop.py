"""Base class of both loops: phases with their seconds and reports, evaluation, checkpoints and resuming from them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd_fast.device.compilation import CLOCK
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import LossTerms, Method, PoolPlan, SynthBatch
from dfkd_fast.methods.exchange import DeployedHead
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.procedural.selection import vote_entropy
from dfkd_fast.reporting.loggers import RunLogger
from dfkd_fast.rng import seed_phase
from dfkd_fast.training.checkpoints.checkpoint import PHASES, Checkpoint
from dfkd_fast.training.checkpoints.state_tensors import (
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    part_tensors,
)
from dfkd_fast.training.evaluate import deployed
from dfkd_fast.training.failures import CollapseWatch, check_finite, explained
from dfkd_fast.training.inner import OnStep, bind
from dfkd_fast.training.interrupt import StopSignals
from dfkd_fast.training.prior import Prior
from dfkd_fast.training.student import StudentSteps


@dataclass(kw_only=True)
class Progress:
    """What a run has done and measured so far; part of every checkpoint."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """wall seconds by phase: synthesis, distillation, evaluation; and compile, what was spent on making them fast"""
    processor_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """processor time, by phase, of the thread that runs the steps, compilation included; without what an older run, of
    before it was measured, had taken
    """
    counts: Counter[str] = field(default_factory=Counter)
    """images_synthesized by all ranks; generator_steps and student_steps, which all take together"""
    last_evaluation: dict[str, float] = field(default_factory=dict)
    """top1, top5 and agreement of the newest evaluation"""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seconds": dict(self.seconds),
            "processor_seconds": dict(self.processor_seconds),
            "counts": dict(self.counts),
            "last_evaluation": self.last_evaluation,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Progress:
        """The inverse of `record`."""
        return cls(
            seconds=defaultdict(float, record["seconds"]),
            processor_seconds=defaultdict(float, record.get("processor_seconds", {})),
            counts=Counter(record["counts"]),
            last_evaluation=record["last_evaluation"],
        )


@dataclass(kw_only=True)
class Loop:
    """A run's epochs; a subclass says in what order their steps come."""

    image_phases: ClassVar[Sequence[str]] = PHASES[:1]
    """the phases that make images"""

    method: Method
    student: nn.Module
    trainer: StudentSteps
    pool: MultiPool
    runtime: Runtime
    logger: RunLogger
    signals: StopSignals
    seed: int
    evaluate: Callable[[int], dict[str, float]]
    """evaluates the deployed student after an epoch; {} where that epoch is not evaluated"""
    save: Callable[[Checkpoint], None]
    progress: Progress = field(default_factory=Progress)
    watch: CollapseWatch | None = None
    """warns of a run that has collapsed"""
    prior: Prior | None = None
    """what the pool begins with"""

    def __post_init__(self) -> None:
        self.engines, self.plans = bind(self.method, self.runtime), self.method.pools()
        self._scalers = [*(engine.scaler for engine in self.engines), self.trainer.scaler]

    def run(self, *, first: tuple[int, str], stop_after: int | None) -> None:
        """Run from the phase `first` (epoch, phase) to the end, or to the end of epoch number `stop_after`
        (1-based).
        """
        raise NotImplementedError

    def newest_images(self, plan: PoolPlan) -> tuple[Tensor, Tensor]:
        """What has been made last in a size, with its classes: as a pool keeps images, or (B, C, H, W) in [0, 1]."""
        raise NotImplementedError

    def _evaluation(self, epoch: int) -> None:
        with self._timed("evaluation"):
            result = self.evaluate(epoch)
        if result:
            self.progress.last_evaluation = result
            learning = sum(spent for phase, spent in self.progress.processor_seconds.items() if phase != "evaluation")
            self.logger.record(epoch=epoch, phase="evaluation", **result, core_seconds=round(learning, 3))

    def begin_pool(self, first: tuple[int, str], store: Callable[[SynthBatch], None]) -> None:
        """Put in what the pool begins with, where the run is at its start."""
        if self.prior is None or first != (0, PHASES[0]):
            return
        seed_phase(self.seed, self.runtime.share, 0, "prior")
        with self._timed(PHASES[0]):
            for batch in self.prior.batches():
                store(batch)
                self.signals.check()
        for line in self.prior.lines():
            self.logger.message(line)

    def figures(self, phase: str) -> dict[str, float]:
        """What a phase's report has beside its loss terms: after synthesis, how evenly the teacher's votes for the
        pool's images are spread, where a method keeps them, as the entropy of their histogram over ln K.
        """
        sizes = [plan.image_size for plan in self.plans if plan.labels_are_votes]
        if not sizes or phase != PHASES[0]:
            return {}
        counts = torch.stack([self.pool[size].global_class_counts() for size in sizes]).sum(0)
        return {"vote_entropy": vote_entropy(counts).item()}

    def learning(self, phase: str) -> Sequence[str]:
        """The phases whose learning rates are at work in a phase: its own."""
        return (phase,)

    @contextmanager
    def _phase(self, name: str, epoch: int, steps: int) -> Iterator[OnStep]:
        """Reseed, time and report one phase; the block gets the function to call after each step."""
        seed_phase(self.seed, self.runtime.share, epoch, name)
        config = self.method.config
        explain = explained(name, epoch, config, self.runtime)
        with explain, self._timed(name), self.logger.phase(name, epoch, steps) as meter:

            def on_step(terms: LossTerms, images: int) -> None:
                meter.step(terms, images)
                self.signals.check()

            yield on_step
            meter.figures = self.figures(name)
            check_finite(name, epoch, self._state().values(), config, learning=self.learning(name))
            if self.watch is not None:
                self.watch.learned(epoch, meter.means())

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start, prepared, processor = time.perf_counter(), CLOCK.seconds, time.thread_time()
        yield
        self.runtime.synchronize()
        self.progress.processor_seconds[name] += time.thread_time() - processor
        preparing = CLOCK.seconds - prepared
        self.progress.seconds["compile"] += preparing
        self.progress.seconds[name] += time.perf_counter() - start - preparing

    def _boundary(self, epoch: int, phase: str) -> None:
        scalers = [scaler.state_dict() for scaler in self._scalers]
        pool, world_size = self.pool.flush(), self.runtime.shares
        record = {"pool": pool, "world_size": world_size, "scalers": scalers, **self.progress.record()}
        record["metrics"] = self.logger.sync()  # before a checkpoint says that the lines are there
        self.save(Checkpoint(epoch=epoch, phase=phase, tensors=self._state(), record=record))

    def _state(self) -> dict[str, Tensor]:
        """Every tensor of a checkpoint."""
        tensors = module_tensors("student", self.student) | module_tensors("method", self.method)
        if isinstance(self.method.student_head(), DeployedHead):  # what is used of the run, should it stop here
            tensors |= module_tensors("deployed", deployed(self.method, self.student))
        tensors |= optimizer_tensors("optimizer", self.trainer.optimizer)
        for size, priorities in self.trainer.priorities.items():
            tensors |= {f"priorities-{size}/{name}": value for name, value in priorities.state_dict().items()}
        for name, lasting in self._lasting_optimizers():
            tensors |= optimizer_tensors(name, lasting)
        if (int8 := self.trainer.teacher.int8) is not None:
            tensors |= {f"teacher_int8/{name}": value for name, value in int8.tensors().items()}
        return tensors

    def restore(self, checkpoint: Checkpoint) -> tuple[int, str]:
        """Take up the state of a checkpoint, in place; returns the phase to run next."""
        load_module("student", self.student, checkpoint.tensors)
        # another number of ranks: each has other shares, and draws what depends on them in its next round
        moved = checkpoint.record["world_size"] != self.runtime.shares
        load_module("method", self.method, checkpoint.tensors, fitting=moved)
        load_optimizer("optimizer", self.trainer.optimizer, checkpoint.tensors)
        for name, lasting in self._lasting_optimizers():
            load_optimizer(name, lasting, checkpoint.tensors)
        if (int8 := self.trainer.teacher.int8) is not None:
            int8.restore(part_tensors("teacher_int8", checkpoint.tensors))
        for scaler, state in zip(self._scalers, checkpoint.record["scalers"], strict=True):
            scaler.load_state_dict(state)
        with self.runtime.main_first() if self.runtime.global_batch else nullcontext():  # one writes, the others read
            note = self.pool.restore(checkpoint.record["pool"])
        if note:
            self.logger.message(note)
        for size, priorities in self.trainer.priorities.items():
            if note:  # images have moved to other slots, and nobody knows which was whose
                filled = torch.arange(len(self.pool[size]), device=self.runtime.device)
                priorities.update(filled, torch.ones_like(filled, dtype=torch.float32))
            else:
                priorities.load_state_dict(part_tensors(f"priorities-{size}", checkpoint.tensors))
        self.progress = Progress.from_record(checkpoint.record)
        if checkpoint.phase == PHASES[0]:
            return checkpoint.epoch, PHASES[1]
        return checkpoint.epoch + 1, PHASES[0]

    def _lasting_optimizers(self) -> Iterator[tuple[str, Optimizer]]:
        """The optimisers of synthesis whose state lasts over the rounds, by their names in a checkpoint."""
        for number, engine in enumerate(self.engines):
            if engine.lasting is not None:
                yield f"synthesis_optimizer-{number}", engine.lasting
