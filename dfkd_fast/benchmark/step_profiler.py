"""A few steps of a run, timed: the method assembled as a run does it, on random weights, in a folder of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd_fast.benchmark.step_timer import Quantiles, StepTimer, TimedLoop, TimingWindow
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.work import RoundKind, SynthesisKind, Work, probe_epochs, student_epoch
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import CollectedImages, Method, PoolPlan, SynthBatch
from dfkd_fast.methods.inner import inners
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.rng import seed_phase
from dfkd_fast.text.label_embeddings import CENTRES, ENCODED_WIDTH, MADE_UP
from dfkd_fast.training.assemble import load_method, make_method, make_student
from dfkd_fast.training.inner import ignore
from dfkd_fast.training.logit_cache import make_cache
from dfkd_fast.training.pools import check_pool_use, make_pools
from dfkd_fast.training.student import StudentTrainer, make_trainer
from dfkd_fast.training.student_recipe import check_student


@dataclass(kw_only=True)
class Timings:
    """What was measured, in seconds."""

    synthesis: dict[SynthesisKind, Quantiles] = field(default_factory=dict)
    round: dict[RoundKind, float] = field(default_factory=dict)
    """what a round costs beside its steps: resets, statistics, the pool"""
    student: Quantiles = field(default_factory=Quantiles)
    warmup: float = 0.0
    """the steps that were not counted: what compilation takes is in here"""
    counted_seconds: float = 0.0
    wall_seconds: float = 0.0
    """of all samples of steps together, by the window's clock and by the wall"""
    peak_memory_bytes: int = 0

    def synthesis_seconds(self, work: Work) -> Quantiles:
        """Of all synthesis in `work`."""
        rounds = sum(self.round[kind] * count for kind, count in work.rounds.items())
        parts = [(self.synthesis[kind], steps) for kind, steps in work.synthesis_steps.items()]
        return Quantiles(
            rounds + sum(part.median * steps for part, steps in parts),
            rounds + sum(part.least * steps for part, steps in parts),
            rounds + sum(part.most * steps for part, steps in parts),
        )

    def student_seconds(self, work: Work) -> Quantiles:
        """Of all student steps in `work`."""
        return self.student.times(work.student_steps)


class StepProfiler:
    """A run's method, student, pool and trainers on random weights; `measure` times their steps."""

    def __init__(self, config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, folder: Path) -> None:
        """`info` is what teacher and student agree on; pools are written to `folder`."""
        self.runtime = runtime
        self.method, teacher, student = assemble(config, info, runtime)
        check_pool_use(config, self.method, runtime.shares)
        check_student(self.method, teacher, runtime, is_cached=config.cache_teacher_logits != 0)
        cache = make_cache(config.cache_teacher_logits, seed=config.seed, method=self.method, teacher=teacher)
        self.pool, _ = make_pools(config.pool, folder, method=self.method, runtime=runtime, cache=cache)
        self.trainer = make_trainer(
            student, method=self.method, teacher=teacher, pool=self.pool, runtime=runtime, cache=cache
        )
        recipe, self.plans = self.method.config, self.method.pools()
        self.probes = {
            kind: epoch
            for plan in self.plans
            for kind, epoch in probe_epochs(plan, epochs=recipe.epochs, warmup_epochs=recipe.warmup_epochs)
        }
        """the recipe's kinds of round, each with an epoch whose rounds stand for all"""
        self.engines = [
            TimedLoop(place, inner, runtime, self.method.global_batch)
            for place, inner in enumerate(inners(self.method))
        ]
        self._making: RoundKind | None = None
        self._batches: Iterator[tuple[SynthBatch, bool]] = iter(())

    def measure(self, window: TimingWindow) -> Timings:
        """Time every kind of synthesis step, what a round costs beside them, and student steps."""
        timings = Timings()
        self.method.train()
        for kind in self.probes:
            timings.round[kind] = self._measure_round(kind, window)
        for engine in self.engines:
            timings.synthesis |= engine.found
        for plan in self.plans:
            self._fill_unmade(plan)
        timer = StepTimer(window, self.runtime)
        timer.start()
        self.trainer.epoch(student_epoch(self.method), window.total, timer.on_step)
        timings.student = timer.spread()
        timers = [timer, *(each for engine in self.engines for each in engine.timers)]
        timings.warmup = sum(each.warmup_seconds for each in timers)
        timings.counted_seconds = sum(each.counted_seconds for each in timers)
        timings.wall_seconds = sum(each.wall_seconds for each in timers)
        timings.peak_memory_bytes = self.runtime.peak_memory_bytes()
        return timings

    def close(self) -> None:
        """Give up the pool's files, and what the method's steps hold on the device."""
        self.pool.close()
        for engine in self.engines:
            engine.inner.engine = None

    def _measure_round(self, kind: RoundKind, window: TimingWindow) -> float:
        """Time the steps of a kind of round; returns what it costs beside them."""
        for engine in self.engines:
            engine.window = window
        batch = self.step_round(kind)
        for engine in self.engines:
            engine.window = None
        if self.method.loop == "stepwise":  # a round is its steps
            return 0.0
        self.fill(batch)
        return min(self._round_cost(kind, window) for _ in range(2))

    def step_round(self, kind: RoundKind | None = None) -> SynthBatch:
        """A round of a kind, by default an epoch's first of the first size behind the warm-up, with one step where the
        recipe has many. Rounds follow each other as in an epoch, which begins anew at its end.
        """
        if not self.probes:
            raise UserError("a recipe without synthesis rounds has no synthesis steps to take; choose another method")
        kind = kind or min(self.probes, key=lambda each: (each.warmup, each.later))
        return next(batch for batch, of_kind in self._begun(kind) if of_kind)

    def _begun(self, kind: RoundKind) -> Iterator[tuple[SynthBatch, bool]]:
        """The batches that follow, to the first of a kind and beyond it; with each whether it is of the kind."""
        for engine in self.engines:
            engine.begin_round(kind)
        if kind != self._making:
            self._making, self._batches = kind, self._epochs(kind)
        return self._batches

    def _epochs(self, kind: RoundKind) -> Iterator[tuple[SynthBatch, bool]]:
        """What an epoch makes to its last round of a kind, of all sizes, again and again; not what fills the pool."""
        size, epoch = kind.image_size, self.probes[kind]
        rounds = next(plan.rounds(epoch) for plan in self.plans if plan.image_size == size) if kind.later else 1
        while True:
            made = 0
            for batch in self.method.synthesize(epoch):
                is_size = batch.images.shape[-2:] == size
                made += is_size
                yield batch, is_size and (made > 1) == kind.later
                if made == rounds:
                    break
            assert made == rounds, f"{made} of {rounds} rounds of {kind} came in epoch {epoch}"

    def student_step(self) -> None:
        """An epoch of one student step."""
        self.trainer.epoch(student_epoch(self.method), 1, ignore)

    def fill(self, batch: SynthBatch) -> None:
        """Fill a batch's pool with copies of it: two student batches, or less, with room left for a few rounds."""
        if self.method.loop == "stepwise":
            return
        size = ImageSize(*batch.images.shape[-2:])
        pool, plan = self.pool[size], next(plan for plan in self.plans if plan.image_size == size)
        while len(pool) < min(2 * plan.batch_size, max(len(batch.images), pool.capacity - 5 * len(batch.images))):
            self._add(batch)

    def _fill_unmade(self, plan: PoolPlan) -> None:
        """The same for a size that no round makes, with what fills its pool."""
        if plan.fill_images and not any(kind.image_size == plan.image_size for kind in self.probes):
            self.fill(next(iter(self.method.synthesize(self.method.config.warmup_epochs - 1))))

    def _round_cost(self, kind: RoundKind, window: TimingWindow) -> float:
        """Seconds of a round, into the pool, without its steps; nor rounds of other sizes before it."""
        batches = self._begun(kind)
        for engine in self.engines:
            engine.clock = window.clock
        of_kind = False
        while not of_kind:
            for engine in self.engines:
                engine.step_seconds = 0.0
            self.runtime.synchronize()
            start = window.clock()
            made, of_kind = next(batches)
        self._add(made)
        self.runtime.synchronize()
        seconds = window.clock() - start
        for engine in self.engines:
            engine.clock = None
        return seconds - sum(engine.step_seconds for engine in self.engines)

    def _add(self, batch: SynthBatch) -> None:
        pool = self.pool[ImageSize(*batch.images.shape[-2:])]
        if pool.policy == "append" and len(pool) + len(batch.images) > pool.capacity:
            return
        assert isinstance(self.trainer, StudentTrainer), "a method with a pool"
        self.trainer.store(batch)


def assemble(config: TrainConfig[Any], info: ModelInfo, runtime: Runtime) -> tuple[Method, FrozenNet, nn.Module]:
    """A run's method, teacher and student, on random weights: they change no time. An encoder's class vectors are made
    up, of CLIP's width, and so are collected images: none is needed.
    """
    method_class = load_method(config.method_name)
    seed_phase(config.seed, 0, 0, "dry run")
    is_encoded = bool(method_class.needs.text) and config.text not in (CENTRES, *MADE_UP)
    vectors = torch.randn(info.num_classes, ENCODED_WIDTH) if is_encoded else None
    model, _ = load_model(
        config.teacher, num_classes=info.num_classes, image_size=info.image_size, mean=info.mean, std=info.std
    )
    student = make_student(config, info, runtime)
    calibrate_batchnorm(model, info)
    calibrate_batchnorm(student, info)
    teacher = FrozenNet(model, info, runtime, precision=config.teacher_precision, folded=config.fold_teacher)
    collected = CollectedImages.noise(info) if method_class.needs.real_images else None
    return make_method(config, method_class, teacher, student, runtime, collected, vectors=vectors), teacher, student


@torch.no_grad()
def calibrate_batchnorm(model: nn.Module, info: ModelInfo) -> None:
    """Give a network of random weights the BN statistics of noise: without them its activations leave any range."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momentum = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 1.0
    training, weight = model.training, next(model.parameters(), torch.zeros(()))
    model.train()(weight.new_empty(4, *info.shape).normal_())
    model.train(training)
    for layer, before in zip(norms, momentum, strict=True):
        layer.momentum = before


def profile_steps(
    config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, window: TimingWindow
) -> tuple[Method, Timings]:
    """Assemble a run in a temporary folder and time its steps; returns its method too, which knows the recipe."""
    with tempfile.TemporaryDirectory(prefix="dfkd-fast-") as folder:
        profiler = StepProfiler(config, info, runtime, Path(folder))
        try:
            return profiler.method, profiler.measure(window)
        finally:
            profiler.close()
