"""The distillation phase: the student learns from the teacher on images of the pool."""

from __future__ import annotations

import math

import torch
from torch import nn

from dfkd_fast.augment import draw_boxes, resized_crop
from dfkd_fast.loops.synthesis import OnStep
from dfkd_fast.methods.base import LossTerms, Method, MethodConfig, weighted_sum
from dfkd_fast.models.teacher import FrozenNet, NetOutput
from dfkd_fast.optim import OptimizerSpec, set_lr
from dfkd_fast.pool.pool import Pool, PoolBatch
from dfkd_fast.pool.stream import View
from dfkd_fast.runtime import Runtime
from dfkd_fast.sampling import ByPriority, EpochShuffle, Sampler


class StudentTrainer:
    """Runs student epochs: pool read, teacher, student, the method's loss, SGD with a cosine over the epochs after
    warm-up.
    """

    def __init__(self, student: nn.Module, *, method: Method, teacher: FrozenNet, pool: Pool, runtime: Runtime) -> None:
        self.student, self.method, self.teacher = student, method, teacher
        self.pool, self.runtime = pool, runtime
        self.priorities = method.open_pool(pool)
        config = method.config
        pad = config.crop_padding if config.crop_scale == 1 else 0
        self.view = View(info=method.info, pad=pad, flip=config.flip)
        self.optimizer = OptimizerSpec(
            kind="sgd",
            groups=[{"params": list(student.parameters()), "lr": config.student_lr}],
            momentum=config.student_momentum,
            weight_decay=config.student_weight_decay,
        ).build()
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")

    def epoch(self, epoch: int, on_step: OnStep) -> None:
        """`student_steps` steps over the pool as it is now."""
        config = self.method.config
        set_lr(self.optimizer, student_lr(config, epoch))
        self.student.train()
        for batch in self.pool.batches(self._sampler(), self.view, config.student_steps):
            if config.crop_scale < 1:
                boxes = draw_boxes(len(batch.images), scale=config.crop_scale, device=self.runtime.device)
                batch = batch._replace(images=resized_crop(batch.images, boxes))
            on_step(self.step(batch), config.batch_size)

    def step(self, batch: PoolBatch) -> LossTerms:
        """One step on a batch of the pool. Returns the detached terms."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.runtime.autocast():
            with torch.no_grad():
                teacher = self.teacher(batch.images, moments=False)
            student = NetOutput(self.student(batch.images))
            terms = self.method.student_loss(batch, teacher, student)
        self.scaler.scale(weighted_sum(terms, self.method.config)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {name: term.detach() for name, term in terms.items()}

    def _sampler(self) -> Sampler:
        batch_size = self.method.config.batch_size
        if self.priorities is not None:
            return ByPriority(self.priorities, batch_size)
        return EpochShuffle(len(self.pool), batch_size, device=self.runtime.device)


def student_lr(config: MethodConfig, epoch: int) -> float:
    """Cosine from `student_lr` to `student_lr_min` over the epochs after warm-up, one value per epoch (0-based)."""
    span = config.epochs - config.warmup_epochs
    progress = (epoch - config.warmup_epochs) / span
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.student_lr_min + (config.student_lr - config.student_lr_min) * cosine
