"""Where a student's batches come from: the pool, or the method, in each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import Method
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.pool.pool import PoolBatch
from dfkd_fast.training.logit_cache import LogitCache
from dfkd_fast.training.student import StudentSteps, StudentTrainer


def make_trainer(
    student: nn.Module,
    *,
    method: Method,
    teacher: FrozenNet,
    pool: MultiPool,
    runtime: Runtime,
    cache: LogitCache | None = None,
) -> StudentSteps:
    """What trains the student: on batches of the pool, or on what the method makes in each step."""
    if method.loop == "stepwise":
        return FreshTrainer(student, method=method, teacher=teacher, runtime=runtime)
    return StudentTrainer(student, method=method, teacher=teacher, pool=pool, runtime=runtime, cache=cache)


class FreshTrainer(StudentSteps):
    """Student steps on images that `Method.student_view` makes: generation, teacher and student are captured as one."""

    def __init__(self, student: nn.Module, *, method: Method, teacher: FrozenNet, runtime: Runtime) -> None:
        super().__init__(student, method=method, teacher=teacher, runtime=runtime)
        slots = torch.arange(self.batch_size, device=runtime.device)
        none = torch.empty(0, device=runtime.device)
        self._batch = PoolBatch(none, torch.full_like(slots, -1), slots, {})

    def inputs(self, count: int) -> Iterator[tuple[Any, ...]]:
        """Nothing: a step brings its own images."""
        for _ in range(count):
            yield ()

    def batches(self, *inputs: Any) -> dict[int, PoolBatch]:
        return {self.method.info.image_size: self._batch}
