"""Where a student's batches come from: the pool, or the generator, in each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dfkd_fast.augment import Augment
from dfkd_fast.device.compilation import compiled
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import Method
from dfkd_fast.methods.stepwise import StepwiseMethod
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.pool.pool import PoolBatch
from dfkd_fast.training.logit_cache import LogitCache
from dfkd_fast.training.student import StudentSteps, StudentTrainer
from dfkd_fast.training.synthesis import OnStep


def make_trainer(
    student: nn.Module,
    *,
    method: Method,
    teacher: FrozenNet,
    pool: MultiPool,
    runtime: Runtime,
    cache: LogitCache | None = None,
) -> StudentSteps:
    """What trains the student: on batches of the pool, or on what the generator makes in each step."""
    if isinstance(method, StepwiseMethod):
        return FreshTrainer(student, method=method, teacher=teacher, runtime=runtime)
    return StudentTrainer(student, method=method, teacher=teacher, pool=pool, runtime=runtime, cache=cache)


class FreshTrainer(StudentSteps):
    """Student steps on images that the generator makes in the step: generation, teacher and student are captured as
    one.
    """

    method: StepwiseMethod

    def __init__(self, student: nn.Module, *, method: StepwiseMethod, teacher: FrozenNet, runtime: Runtime) -> None:
        super().__init__(student, method=method, teacher=teacher, runtime=runtime)
        self._augment = Augment(method.info, pad=self.pad, flip=self.flip)
        runtime.place(self._augment)
        self._slots = torch.arange(self.batch_size, device=runtime.device)
        self._unlabelled = torch.full_like(self._slots, -1)
        self._images = compiled(method.fresh_images, runtime.compilation)

    def steps(self, count: int, on_step: OnStep) -> None:
        self.method.train(self.method.config.sampling == "train")
        super().steps(count, on_step)

    def inputs(self, count: int) -> Iterator[tuple[Any, ...]]:
        """Nothing: a step brings its own images."""
        for _ in range(count):
            yield ()

    def batches(self, *inputs: Any) -> dict[int, PoolBatch]:
        with torch.no_grad(), self.runtime.autocast():
            view = self._augment(self._images())
        return {self.method.info.image_size: PoolBatch(view, self._unlabelled, self._slots, {})}
