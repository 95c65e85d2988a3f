"""DFAD: Data-Free Adversarial Distillation.

Fang, Song, Shen, Wang, Chen, Song. 2019. arXiv:1912.11006. Algorithm 1, with the values of the authors' release.

Deviations from the release: a round's generator step comes before its student steps; frozen networks get no weight
gradients. docs/methods/dfad.md goes through it line by line.
Distributed: one generator on all ranks, each with its share of both batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from dfkd_fast.errors import UserError
from dfkd_fast.generators.decoder import Output, make_decoder
from dfkd_fast.methods.base import LossTerms, Needs, Setup
from dfkd_fast.methods.stepwise import StepwiseConfig, StepwiseMethod
from dfkd_fast.models.teacher import NetOutput, frozen_alias, unregistered
from dfkd_fast.pool.pool import PoolBatch


@dataclass(frozen=True, kw_only=True)
class DfadConfig(StepwiseConfig):
    """The recipe of DFAD; defaults are the released CIFAR script's."""

    epochs: int = 500
    """epochs in all"""
    student_steps: int = 250
    """student steps in one epoch (release: 50 iterations of 5)"""
    student_weight_decay: float = 5e-4
    """weight decay of the student's SGD"""
    student_lr_steps: tuple[int, ...] = (100, 200)
    """distilled epochs after which both learning rates are divided by 10"""
    generator_width: int = 128
    """channels of the generator's stem and first block; the last has half"""
    generator_output: Output = "tanh-batchnorm"
    """what images end in: a BatchNorm behind a tanh, the data's mean and spread over a batch, without bounds"""
    sampling: Literal["eval", "train"] = "train"
    """BatchNorm mode of the generator while it makes the student's images"""
    student_mode: Literal["released", "eval"] = "released"
    """the student's BatchNorm in a generator step: released, by the batch's statistics, which moves the running ones;
    eval: by its running statistics
    """
    adv_weight: float = 1.0
    """weight of the adversarial term, all that the generator minimises"""

    def check(self) -> None:
        if self.student_lr_steps and self.generator_lr_schedule != "constant":
            steps = " ".join(map(str, self.student_lr_steps))
            raise UserError(
                f"--method.generator-lr-schedule {self.generator_lr_schedule}: the generator's rate falls with the "
                f"student's, --method.student-lr-steps {steps}; choose constant, or give no steps"
            )


class Dfad(StepwiseMethod):
    needs = Needs(batchnorm=False)
    paper = "arXiv:1912.11006"

    config: DfadConfig

    def __init__(self, config: DfadConfig, setup: Setup) -> None:
        by_steps = self._by_student_steps if config.student_lr_steps else None
        super().__init__(config, setup, decoder=make_decoder, betas=(0.9, 0.999), lr_scale=by_steps)
        student = setup.student if config.student_mode == "eval" else frozen_alias(setup.student).train()
        self._judge = unregistered(student)

    def losses(self, view: Tensor, teacher: NetOutput, *, adversarial: bool) -> LossTerms:
        return {"adv": -F.l1_loss(self._judge[0](view), teacher.logits)}

    def student_loss(self, batch: PoolBatch, teacher: NetOutput, student: NetOutput) -> LossTerms:
        return {"kd": F.l1_loss(student.logits, teacher.logits)}

    def _by_student_steps(self, epoch: int, index: int) -> float:
        steps, distilled = self.config.student_lr_steps, epoch - self.config.warmup_epochs
        return float(0.1 ** sum(distilled >= step for step in steps))
