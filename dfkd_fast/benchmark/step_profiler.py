"""A few steps of a run, timed: the method assembled as a run does it, on random weights, in a folder of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd_fast.benchmark.step_timer import Quantiles, StepTimer, TimingWindow
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.work import SynthesisKind, Work, probe_epoch, stage_kinds
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import CollectedImages, LossTerms, Method, SynthBatch
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.rng import seed_phase
from dfkd_fast.text.label_embeddings import CENTRES
from dfkd_fast.training.logit_cache import make_cache
from dfkd_fast.training.networks import check_pool_use, load_method, make_method, make_student
from dfkd_fast.training.pools import make_pools
from dfkd_fast.training.student import StudentTrainer
from dfkd_fast.training.synthesis import Synthesizer
from dfkd_fast.training.trainers import make_trainer


@dataclass(kw_only=True)
class Timings:
    """What a rehearsal measured, in seconds."""

    synthesis: dict[SynthesisKind, Quantiles] = field(default_factory=dict)
    round: dict[SynthesisKind, float] = field(default_factory=dict)
    """what a round costs beside its steps: resets, statistics, the pool"""
    student: Quantiles = field(default_factory=Quantiles)
    warmup: float = 0.0
    """the steps that were not counted: what compilation takes is in here"""
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
        cache = make_cache(config.cache_teacher_logits, seed=config.seed, method=self.method, teacher=teacher)
        self.pool, _ = make_pools(config.pool, folder, method=self.method, runtime=runtime, cache=cache)
        self.trainer = make_trainer(
            student, method=self.method, teacher=teacher, pool=self.pool, runtime=runtime, cache=cache
        )
        self.synthesizers = [Synthesizer(source, runtime) for source in self.method.sources()]

    def measure(self, window: TimingWindow) -> Timings:
        """Time every kind of synthesis step, what a round costs beside them, and student steps."""
        timings = Timings()
        self.method.train()
        for synthesizer in self.synthesizers:
            for warmup in (True, False):
                self._measure_round(synthesizer, window, timings, warmup=warmup)
        watch = StepTimer(window, self.runtime)
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

    def _measure_round(self, synthesizer: Synthesizer, window: TimingWindow, timings: Timings, *, warmup: bool) -> None:
        source = synthesizer.method
        kinds = [kind for kind, _ in stage_kinds(source, warmup=warmup)]
        window = replace(window, steps=window.steps * source.turns)
        epoch, watch = probe_epoch(self.method, warmup=warmup), StepTimer(window, self.runtime)
        with _answering(source, "stages", (window.total,) * len(kinds)):
            watch.start()
            batch = synthesizer.round(epoch, 0, watch.on_step)
        for stage, kind in enumerate(kinds):
            timings.synthesis[kind] = watch.spread(stage)
        timings.warmup += watch.warmup_seconds
        if source.loop == "stepwise":  # a round is its steps
            timings.round[kinds[-1]] = 0.0
            return
        self.fill(source, batch)
        costs = [self._round_cost(synthesizer, window, warmup=warmup) for _ in range(2)]
        steps = sum(timings.synthesis[kind].median for kind in kinds)
        timings.round[kinds[-1]] = max(0.0, min(costs) - steps)

    def step_round(self, synthesizer: Synthesizer, *, warmup: bool = False, index: int = 0) -> SynthBatch:
        """A round with one step in each stage: what one step costs, and what a round costs beside it."""
        epoch, stages = probe_epoch(self.method, warmup=warmup), (1,) * len(synthesizer.method.stages())
        with _answering(synthesizer.method, "stages", stages):
            return synthesizer.round(epoch, index, _ignore)

    def student_step(self) -> None:
        """An epoch of one student step."""
        with _answering(self.method, "student_steps", 1):
            self.trainer.epoch(probe_epoch(self.method, warmup=False), _ignore)

    def fill(self, source: Method, batch: SynthBatch) -> None:
        """Fill a source's pool, where it has one, with copies of a batch, for two student batches, or as far as it goes
        with room left for a few rounds.
        """
        if source.loop == "stepwise":
            return
        pool, batch_size = self.pool[source.info.image_size], len(batch.images)
        while len(pool) < min(2 * source.config.batch_size, pool.capacity - 5 * batch_size):
            self._add(source, batch)

    def _round_cost(self, synthesizer: Synthesizer, window: TimingWindow, *, warmup: bool) -> float:
        """Seconds of a round with one step in each stage, into the pool."""
        self.runtime.synchronize()
        start = window.clock()
        self._add(synthesizer.method, self.step_round(synthesizer, warmup=warmup))
        self.runtime.synchronize()
        return window.clock() - start

    def _add(self, source: Method, batch: SynthBatch) -> None:
        size = source.info.image_size
        pool = self.pool[size]
        if pool.policy == "append" and len(pool) + len(batch.images) > pool.capacity:
            return
        assert isinstance(self.trainer, StudentTrainer), "a method with a pool"
        self.trainer.store(size, batch)


def assemble(config: TrainConfig[Any], info: ModelInfo, runtime: Runtime) -> tuple[Method, FrozenNet, nn.Module]:
    """A run's method, teacher and student, on random weights: they change no time.

    Class vectors are made up, of about the width that an encoder's have, and so are collected images: none is needed.
    """
    method_class = load_method(config.method_name)
    if method_class.text_sources and config.text not in (CENTRES, "one-hot"):
        config = replace(config, text="orthogonal")
    seed_phase(config.seed, 0, 0, "rehearsal")
    model, _ = load_model(
        config.teacher, num_classes=info.num_classes, image_size=info.image_size, mean=info.mean, std=info.std
    )
    student = make_student(config, info, runtime)
    settle(model, info)
    settle(student, info)
    teacher = FrozenNet(model, info, runtime, precision=config.teacher_precision)
    collected = CollectedImages.noise(info) if method_class.needs_data else None
    return make_method(config, method_class, teacher, student, runtime, collected), teacher, student


@torch.no_grad()
def settle(model: nn.Module, info: ModelInfo) -> None:
    """Give a network of random weights the BN statistics of noise: without them its activations leave any range."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momentum = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 1.0
    training, weight = model.training, next(model.parameters())
    model.train()(weight.new_empty(4, info.in_chans, info.image_size, info.image_size).normal_())
    model.train(training)
    for layer, before in zip(norms, momentum, strict=True):
        layer.momentum = before


def rehearse(
    config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, window: TimingWindow
) -> tuple[Method, Timings]:
    """Assemble a run in a temporary folder and time its steps; returns its method too, which knows the recipe."""
    with tempfile.TemporaryDirectory(prefix="dfkd-fast-") as folder:
        rehearsal = StepProfiler(config, info, runtime, Path(folder))
        try:
            return rehearsal.method, rehearsal.measure(window)
        finally:
            rehearsal.close()


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
