"""DFQ: Data-Free Network Quantization With Adversarial Knowledge Distillation.

Choi, Choi, El-Khamy, Lee. CVPR Workshops 2020. arXiv:2005.04136. Its distillation part, with the values of the
re-implementation that the field's tables quote (CMI's authors); quantisation is no part of it.

Deviations from the re-implementation: frozen networks get no weight gradients. docs/methods/dfq.md goes through it line
by line.
Distributed: one generator on all ranks, each with its share of both batches; BN moments per rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dfkd_fast.losses.generator import class_balance, label_ce
from dfkd_fast.methods.base import LossTerms, Setup
from dfkd_fast.methods.stepwise import StepwiseConfig, StepwiseMethod
from dfkd_fast.models.teacher import NetOutput
from dfkd_kernels import bn_stat_loss


@dataclass(frozen=True, kw_only=True)
class DfqConfig(StepwiseConfig):
    """The recipe of DFQ; defaults are the benchmark's."""

    student_steps_per_round: int = 10
    """student steps after each generator step (release: kd_steps)"""
    ce_weight: float = 1.0
    """weight of the term that makes the teacher sure of some class"""
    bn_weight: float = 1.0
    """weight of the BN-statistics term"""
    balance_weight: float = 20.0
    """weight of the class-balance term"""
    adv_weight: float = 1.0
    """weight of the adversarial term"""


class Dfq(StepwiseMethod):
    paper = "arXiv:2005.04136"

    config: DfqConfig

    def __init__(self, config: DfqConfig, setup: Setup) -> None:
        super().__init__(config, setup, reads_moments=config.bn_weight > 0)

    def losses(self, view: Tensor, teacher: NetOutput, *, adversarial: bool) -> LossTerms:
        terms = {
            "ce": label_ce(teacher.logits, self.labels),
            "balance": class_balance(teacher.logits),
        }
        if self.reads_moments:
            terms["bn"] = bn_stat_loss(teacher.moments, self.teacher.targets)
        if adversarial:
            terms["adv"] = self.disagreement(view, teacher)
        return terms
