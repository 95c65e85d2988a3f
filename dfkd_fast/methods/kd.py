"""KD: knowledge distillation on real images, what data-free methods are measured against.

Hinton, Vinyals, Dean. 2015. arXiv:1503.02531. Values of `vanilla_kd.py` in Fast's release, whose tables are quoted.
Not data-free: the student learns from the images of `--collected`, the teacher's own or others. With kd_weight 0 and
ce_weight 1 it is the tables' row "Student", trained on labels alone.

docs/methods/kd.md goes through it.
Distributed: images shared out, batch shared out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from dfkd_fast.errors import UserError
from dfkd_fast.losses.distillation import kd_kl
from dfkd_fast.losses.generator import label_ce
from dfkd_fast.methods.base import LossTerms, Method, MethodConfig, Needs, PoolPlan, Setup, StudentReads, SynthBatch
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.pool.pool import PoolBatch


@dataclass(frozen=True, kw_only=True)
class KdConfig(MethodConfig):
    """The recipe of KD; defaults are the released script's, for CIFAR's 50,000 images."""

    epochs: int = 201
    """epochs in all: one that reads the images, then the student's 200"""
    warmup_epochs: int = 1
    """first epochs, at the end of which the images are read"""
    select_iterate: Literal["last"] = "last"
    """without effect: no image is made"""
    batch_size: int = 128
    """images in one student step"""
    student_steps: int = 391
    """student steps in one epoch: one pass over the images"""
    student_lr: float = 0.1
    """the student's first learning rate"""
    student_lr_steps: tuple[int, ...] = (120, 150, 180)
    """distilled epochs after which it is divided by 10"""
    kd_temperature: float = 1.0
    """temperature of the distillation loss (release: T)"""
    kd_weight: float = 1.0
    """weight of the distillation loss (release: alpha)"""
    ce_weight: float = 0.0
    """weight of the cross-entropy with the real labels (release: beta)"""

    def following(self, before: Self, share: float) -> dict[str, int]:
        images = before.student_steps * before.batch_size * share
        return {"student_steps": max(1, round(images / self.batch_size))} if self.batch_size > 0 else {}


class Kd(Method):
    needs = Needs(batchnorm=False, real_images=True)
    paper = "arXiv:1503.02531"

    config: KdConfig

    def __init__(self, config: KdConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        assert setup.collected is not None, "KD needs collected images"
        self.collected, self.count = setup.collected, len(setup.collected.labels)
        if not (config.kd_weight or config.ce_weight):
            raise UserError("--method.kd-weight 0: with --method.ce-weight 0 nothing is learned; choose one above 0")

    def rounds(self, epoch: int) -> int:
        return 0

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        """The collected images, once, batch by batch."""
        if epoch + 1 != self.config.warmup_epochs:
            return
        size, like = self.config.synthesis_batch_size, next(self.student.parameters())
        for first in range(0, self.count, size):
            yield SynthBatch(*self.collected.rows(first, min(first + size, self.count), like))

    def pools(self) -> tuple[PoolPlan, ...]:
        (plan,), batches = super().pools(), -(-self.count // self.config.synthesis_batch_size)
        return (plan._replace(capacity=self.count, policy="ring", fill_images=self.count, fill_batches=batches),)

    def student_reads(self) -> StudentReads:
        return StudentReads(labels=bool(self.config.ce_weight))

    def student_loss(self, batch: PoolBatch, teacher: NetOutput, student: NetOutput) -> LossTerms:
        terms = {}
        if self.config.kd_weight:
            terms["kd"] = kd_kl(student.logits, teacher.logits, self.config.kd_temperature)
        if self.config.ce_weight:
            terms["ce"] = label_ce(student.logits, batch.labels)
        return terms
