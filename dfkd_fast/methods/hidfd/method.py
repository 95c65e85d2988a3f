"""HiDFD: Hybrid Data-Free Knowledge Distillation.

Tang, Chen, Gong. AAAI 2025. arXiv:2412.13525. Equations and values of the paper; `released` is what the authors' code
does. Not data-free in the strict sense: a GAN learns from a few collected real images, the student from both.

Deviations: real and generated images are uint8 tensors in one pool; docs/methods/hidfd.md has the rest.
Distributed: one GAN (gradients averaged), collected images shared out, pool sharded by rank.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from dfkd_fast.errors import UserError
from dfkd_fast.losses.distillation import kd_kl
from dfkd_fast.methods.base import LossTerms, Method, Needs, PoolPlan, Setup, StudentReads, SynthBatch
from dfkd_fast.methods.hidfd.config import HidfdConfig
from dfkd_fast.methods.hidfd.gan import TeacherGuidedGan
from dfkd_fast.methods.hidfd.hybrid import HybridData, check_passes
from dfkd_fast.models.shared_classifier import ClassifierSharing
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.pool.pool import PoolBatch


class Hidfd(Method):
    paper = "arXiv:2412.13525"
    needs = Needs(batchnorm=False, real_images=True)

    config: HidfdConfig

    def __init__(self, config: HidfdConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.gan = TeacherGuidedGan(config, setup)
        self.hybrid = HybridData(config, self.gan)
        self.sharing = None if config.alignment == "kd" else sharing(setup, projects=config.alignment == "simkd")

    def check_run(self) -> None:
        check_passes(self.config, self.gan.count)

    def rounds(self, epoch: int) -> int:
        return int(epoch < self.config.warmup_epochs)

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        for _ in range(self.rounds(epoch)):
            yield self.hybrid.preview(self.gan.learn(self.config.synthesis_steps))
        if epoch + 1 == self.config.warmup_epochs:
            yield from self.hybrid.batches()

    def pools(self) -> tuple[PoolPlan, ...]:
        (plan,), images, batches = super().pools(), self.hybrid.images, self.hybrid.count
        # the GAN's last images are overwritten by those that the pool is filled with
        return (plan._replace(capacity=images, policy="ring", fill_images=images, fill_batches=batches),)

    def student_reads(self) -> StudentReads:
        return StudentReads() if self.sharing is None else StudentReads((), teacher_features=True)

    def student_head(self) -> nn.Module | None:
        return self.sharing

    def student_loss(self, batch: PoolBatch, teacher: NetOutput, student: NetOutput) -> LossTerms:
        if self.sharing is None:
            return {"kd": kd_kl(student.logits, teacher.logits, self.config.kd_temperature)}
        return {"align": self.sharing.loss(student, teacher)}


def sharing(setup: Setup, *, projects: bool) -> ClassifierSharing:
    """What of the student the teacher's classifier reads. Raises UserError where it cannot be without a projector."""
    try:
        return ClassifierSharing(setup.student, setup.teacher, setup.info, projects=projects)
    except ValueError as error:
        raise (
            error if isinstance(error, UserError) else UserError(f"--method.alignment pooled: {error}; choose simkd")
        ) from None
