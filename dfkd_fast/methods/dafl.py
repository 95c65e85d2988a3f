"""DAFL: Data-Free Learning of Student Networks.

Chen, Wang, Xu, Yang, Liu, Shi, Xu, Xu, Tian. ICCV 2019. arXiv:1904.01186. Values of the re-implementation that the
field's tables quote (CMI's authors); the original's are options and the preset `cifar10-original`.

Deviations from the re-implementation: frozen networks get no weight gradients, and BN statistics that no term reads are
not computed. docs/methods/dafl.md goes through it line by line.
Distributed: one generator on all ranks, each with its share of both batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.losses.generator import activation, class_balance, label_ce
from dfkd_fast.methods.base import LossTerms, Needs, Setup
from dfkd_fast.methods.stepwise import StepwiseConfig, StepwiseMethod
from dfkd_fast.models.teacher import NetOutput


@dataclass(frozen=True, kw_only=True)
class DaflConfig(StepwiseConfig):
    """The recipe of DAFL; defaults are the benchmark's."""

    latent_dim: int = 512
    """size of a latent (original: 1000)"""
    ce_weight: float = 1.0
    """weight of the one-hot term (paper: L_oh)"""
    act_weight: float = 0.001
    """weight of the activation term (paper: alpha, L_a; original: 0.1)"""
    balance_weight: float = 20.0
    """weight of the class-balance term (paper: beta, L_ie; original: 5, by log10)"""


class Dafl(StepwiseMethod):
    needs = Needs(batchnorm=False)
    paper = "arXiv:1904.01186"

    config: DaflConfig

    def __init__(self, config: DaflConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        if config.act_weight and not _has_features(setup):
            raise UserError(
                f"--teacher {setup.info.name}: no feature map that is pooled into its logits, which the activation "
                "term reads; choose another network, or --method.act-weight 0"
            )

    def losses(self, view: Tensor, teacher: NetOutput, *, adversarial: bool) -> LossTerms:
        terms = {
            "ce": label_ce(teacher.logits, self.labels),  # the class that the teacher sees: as sure as it can be
            "balance": class_balance(teacher.logits),
        }
        if self.config.act_weight:
            terms["act"] = activation(teacher.pooled())
        return terms


@torch.no_grad()
def _has_features(setup: Setup) -> bool:
    probe = setup.info.blank(next(setup.student.parameters()))
    return setup.teacher(probe, moments=False).features is not None
