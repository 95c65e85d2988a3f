"""ZSKT: Zero-shot Knowledge Transfer via Adversarial Belief Matching.

Micaelli, Storkey. NeurIPS 2019. arXiv:1905.09768. Values of the re-implementation that the field's tables quote (CMI's
authors); the original's, with attention transfer, are options and the preset `cifar10-original`.

Deviations from the re-implementation: frozen networks get no weight gradients, and BN statistics that no term reads are
not computed. docs/methods/zskt.md goes through it line by line.
Distributed: one generator on all ranks, each with its share of both batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd_fast.config.setting import setting
from dfkd_fast.errors import UserError
from dfkd_fast.losses.distillation import attention_transfer
from dfkd_fast.methods.base import LossTerms, Needs, Setup, StudentReads
from dfkd_fast.methods.stepwise import StepwiseConfig, StepwiseMethod
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.teacher import NetOutput, pair_stages, stage_ends
from dfkd_fast.pool.pool import PoolBatch


@dataclass(frozen=True, kw_only=True)
class ZsktConfig(StepwiseConfig):
    """The recipe of ZSKT; defaults are the benchmark's."""

    adv_weight: float = 1.0
    """weight of the adversarial term, all that the generator minimises"""
    attention_weight: float = 0.0
    """weight of attention transfer in the student's loss (paper: beta; original: 250); 0: none"""
    attention_stages: int = setting(3, at_least=0)
    """the networks' first stages, as many as both have, whose maps are compared (original: three, wide ResNets')"""


class Zskt(StepwiseMethod):
    needs = Needs(batchnorm=False)
    paper = "arXiv:1905.09768"

    config: ZsktConfig

    def __init__(self, config: ZsktConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self._maps: tuple[Sequence[str], Sequence[str]] = ((), ())  # the teacher's, and the student's
        if config.attention_weight:
            of_teacher = setup.teacher.stage_maps(config.attention_stages)
            self._maps = pair_stages(of_teacher, setup.student)
            if not self._maps[0]:
                raise UserError(
                    f"--method.attention-weight {config.attention_weight:g}: no stages to compare, "
                    f"{config.attention_stages} asked for, {len(stage_ends(setup.student))} found in the student; "
                    "choose 0"
                )
            _check_sizes(*self._maps, config, setup)

    def losses(self, view: Tensor, teacher: NetOutput, *, adversarial: bool) -> LossTerms:
        return {"adv": self.disagreement(view, teacher)}

    def student_reads(self) -> StudentReads:
        of_teacher, of_student = self._maps
        return StudentReads(of_student or None, of_teacher)

    def student_loss(self, batch: PoolBatch, teacher: NetOutput, student: NetOutput) -> LossTerms:
        terms = super().student_loss(batch, teacher, student)
        if self.config.attention_weight:
            terms["attention"] = attention_transfer(list(student.maps.values()), list(teacher.maps.values()))
        return terms


@torch.no_grad()
def _check_sizes(teacher: Sequence[str], student: Sequence[str], config: ZsktConfig, setup: Setup) -> None:
    """Raise UserError where the maps of a stage are not of one size in both networks."""
    probe = setup.info.blank(next(setup.student.parameters()))
    theirs = setup.teacher(probe, maps=teacher, moments=False).maps
    mine = FeatureExtractor(setup.student, maps=student)(probe).maps
    for stage, names in enumerate(zip(teacher, student, strict=True), start=1):
        sizes = [tuple(maps[name].shape[2:]) for maps, name in zip((theirs, mine), names, strict=True)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"--method.attention-weight {config.attention_weight}: maps of stage {stage} are {sizes[0]} in the "
                f"teacher and {sizes[1]} in the student; choose networks whose stages fit, or 0"
            )
