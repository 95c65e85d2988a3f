"""The kernels of a run's steps, recorded on tensors without values: no card is needed, and no time goes by.

The method, its trainers and its pools are assembled as a run does it, on the CPU; every kind of step is taken twice,
and the second time is written down: by then optimisers have their states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from dfkd_fast.benchmark.step_profiler import assemble
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.flops import StepFlops, count_step_flops
from dfkd_fast.costs.recorder import Part, Recorder
from dfkd_fast.costs.without_values import without_values
from dfkd_fast.costs.work import RoundKind, SynthesisKind, probe_epochs, student_epoch
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import Method, PoolPlan, SynthBatch
from dfkd_fast.methods.inner import Inner, LrScale, Variant, inners, key_of
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.parallel.global_batch import GlobalBatch
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.pool.pool import Pool
from dfkd_fast.training.inner import InnerLoop
from dfkd_fast.training.logit_cache import make_cache, resolved_count
from dfkd_fast.training.student import StudentTrainer, make_trainer
from dfkd_kernels.backend import assumed


@dataclass(kw_only=True)
class Recording:
    """The kernels of each kind of step of a recipe."""

    synthesis: dict[SynthesisKind, Part] = field(default_factory=dict)
    round: dict[RoundKind, Part] = field(default_factory=dict)
    """what a round does beside its steps; never captured"""
    student: Part = field(default_factory=Part)
    feed: Part = field(default_factory=Part)
    """what a student step's batch takes outside of what is captured"""
    peak_bytes: int = 0
    """of all tensors, the pool included"""
    pool_bytes: int = 0
    """of the pool's images"""


def record_steps(
    config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, *, backend: str | None = None
) -> tuple[Method, Recording, StepFlops]:
    """Record a recipe's steps; returns its method too, which knows the recipe, and the FLOPs of the plain formulation.

    `runtime` is one of the CPU, with the precision and memory format of the run that is meant. `backend`: whose forms
    of our operators are meant ("triton" on a card); None: those of this machine.
    """
    with _recorded(config, info, runtime, backend) as steps:
        kept = resolved_count(config.cache_teacher_logits)
        counted = partial(count_step_flops, teacher=config.teacher, student=config.student, cached_answers=kept)
        return steps.method, steps.made, counted(steps.method, info)


def record(config: TrainConfig[Any], info: ModelInfo, runtime: Runtime) -> Recording:
    """The recording alone, with this machine's forms of our operators."""
    with _recorded(config, info, runtime, None) as steps:
        return steps.made


@contextlib.contextmanager
def _recorded(
    config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, backend: str | None
) -> Iterator[_StepRecorder]:
    recorder = Recorder()
    as_by = contextlib.nullcontext() if backend is None else assumed(backend)
    with as_by, without_values(), recorder, torch.device("cpu"):
        steps = _StepRecorder(config, info, runtime, recorder)
        steps.record()
        yield steps


class _StepRecorder:
    """One run's method, student and pools without values."""

    def __init__(self, config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, recorder: Recorder) -> None:
        self.recorder, self.made = recorder, Recording()
        self.method, teacher, student = assemble(config, info, runtime)
        cache = make_cache(config.cache_teacher_logits, seed=config.seed, method=self.method, teacher=teacher)
        self.pools = MultiPool({} if self.method.loop == "stepwise" else self._pools(config, runtime))
        self.trainer = make_trainer(
            student, method=self.method, teacher=teacher, pool=self.pools, runtime=runtime, cache=cache
        )
        self.engines = [
            RecordingLoop(place, inner, runtime, self.method.global_batch, recorder, self.made.synthesis)
            for place, inner in enumerate(inners(self.method))
        ]
        step = self.trainer.run_step

        def recorded(variant: Any, *inputs: Any) -> Any:
            self.made.student = Part()
            with recorder.into(self.made.student):
                return step(variant, *inputs)

        self.trainer.run_step = recorded

    def record(self) -> None:
        """Take every kind of step."""
        self.method.train()
        recipe = self.method.config
        for plan in self.method.pools():
            made = None
            for kind, epoch in probe_epochs(plan, epochs=recipe.epochs, warmup_epochs=recipe.warmup_epochs):
                made = self._round(kind, epoch)
            if self.method.loop != "stepwise":
                self._fill(plan, made or next(iter(self.method.synthesize(recipe.warmup_epochs - 1))))
        self._student()
        self.made.peak_bytes = self.recorder.peak_bytes
        if self.method.loop != "stepwise":
            images = [self.pools[plan.image_size].storage.column("images") for plan in self.method.pools()]
            self.made.pool_bytes = sum(column.nbytes for column in images)

    def _pools(self, config: TrainConfig[Any], runtime: Runtime) -> dict[ImageSize, Pool]:
        return {
            plan.image_size: Pool(
                -(-(config.pool.capacity or plan.capacity * runtime.shares) // runtime.shares),
                (self.method.info.in_chans, *plan.image_size),
                runtime=runtime,
                num_classes=self.method.info.num_classes,
                policy=config.pool.policy or plan.policy,
                quantize=config.pool.quantize,
            )
            for plan in self.method.pools()
        }

    def _round(self, kind: RoundKind, epoch: int) -> SynthBatch:
        """Record a kind of round: its steps, and what it does beside them."""
        batches, of_size = iter(self.method.synthesize(epoch)), 0
        while True:
            part = Part()
            for engine in self.engines:
                engine.begin_round(kind)
            with self.recorder.into(part):
                made = next(batches)
            is_size = made.images.shape[-2:] == kind.image_size
            of_size += is_size
            if of_size == 1 + kind.later and is_size:
                break
        if isinstance(self.trainer, StudentTrainer):
            with self.recorder.into(part):
                self.trainer.store(made)
        self.made.round[kind] = part
        return made

    def _fill(self, plan: PoolPlan, made: SynthBatch) -> None:
        pool = self.pools[plan.image_size]
        with self.recorder.into(None):
            while len(pool) < min(2 * plan.batch_size, max(len(made.images), pool.capacity - 5 * len(made.images))):
                assert isinstance(self.trainer, StudentTrainer), "a method with a pool"
                self.trainer.store(made)

    def _student(self) -> None:
        """Two student steps."""
        for _ in range(2):
            self.made.feed = Part()
            with self.recorder.into(self.made.feed):
                self.trainer.epoch(student_epoch(self.method), 1, lambda terms, images: None)


class RecordingLoop(InnerLoop):
    """Takes one step of those that it is asked for, and records it."""

    def __init__(
        self,
        place: int,
        inner: Inner,
        runtime: Runtime,
        global_batch: GlobalBatch,
        recorder: Recorder,
        found: dict[SynthesisKind, Part],
    ) -> None:
        super().__init__(inner, runtime, global_batch)
        self.place, self.recorder, self.found = place, recorder, found
        self._is_warmup, self._stepped = True, set[SynthesisKind]()

    def begin_round(self, kind: RoundKind) -> None:
        """Before a round of a kind."""
        self._is_warmup, self._stepped = kind.warmup, set()

    def run(self, steps: int, lr_scale: LrScale, variant: Variant) -> Any:
        kind = SynthesisKind(self.place, key_of(variant), self._is_warmup)
        if kind not in self._stepped:
            self._stepped.add(kind)
            part = self.found[kind] = Part()
            with self.recorder.into(None):
                made = super().run(1, 1.0, variant)
            with self.recorder.into(part):
                self.step(variant)
            return made
        return self.best
