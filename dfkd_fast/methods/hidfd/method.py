"""HiDFD: Hybrid Data-Free Knowledge Distillation.

Tang, Chen, Gong. AAAI 2025. arXiv:2412.13525. Equations and values of the paper; `released` is what the authors' code
does. Not data-free in the strict sense: a GAN learns from a few collected real images, the student from both.

Deviations: real and generated images are uint8 tensors in one pool; docs/methods/hidfd.md has the rest.
Distributed: one GAN (gradients averaged), collected images shared out, pool sharded by rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from torch import nn

from dfkd_fast.config.setting import setting
from dfkd_fast.errors import UserError
from dfkd_fast.losses.kd import kd_kl
from dfkd_fast.methods.base import LossTerms, Method, MethodConfig, Needs, PoolPlan, Setup, StudentReads, SynthBatch
from dfkd_fast.methods.hidfd.gan import TeacherGuidedGan
from dfkd_fast.methods.hidfd.hybrid import HybridData, check_passes, following
from dfkd_fast.models.shared_classifier import ClassifierSharing
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.pool.pool import PoolBatch


@dataclass(frozen=True, kw_only=True)
class HidfdConfig(MethodConfig):
    """The recipe of HiDFD; defaults are the paper's for CIFAR with a tenth of the images collected."""

    epochs: int = 740
    """epochs in all: those of the GAN, then the student's 240"""
    warmup_epochs: int = 500
    """epochs of the GAN; then the pool is filled"""
    synthesis_batch_size: int = 100
    """collected images in one step of the GAN, and as many generated ones"""
    synthesis_steps: int = 100
    """steps of discriminator and generator, in turn, in one epoch: twice the collected images over the batch"""
    keep: Literal["last"] = "last"
    """what the grids show while the GAN learns, the last step's images; the student never sees them"""
    synthetic_images: int = setting(50_000, at_least=1, shared_out=True)
    """images that the trained generator makes for the student (paper: |D_s|)"""
    inflation: int | None = setting(None, at_least=1)
    """how often a collected image comes in one pass of the student (paper: N); without it |D_s| / |D_c|; 1: once"""
    batch_size: int = 64
    """images in one student step"""
    student_steps: int = 1562
    """student steps in one epoch: one pass over |D_s| + N |D_c| images"""
    student_lr: float = 0.05
    """the student's first learning rate (release: 0.01 for mobile networks)"""
    student_lr_steps: tuple[int, ...] = (150, 180, 210)
    """distilled epochs after which it is divided by 10"""
    student_weight_decay: float = 5e-4
    """weight decay of the student's SGD"""
    crop_scale: float = 0.08
    """smallest share of an image's area in the student's random resized crop; the GAN sees whole images"""
    generator_lr: float = setting(1e-4, at_least=0, synthesis_rate=True)
    """Adam's learning rate for the generator (release: 2e-4)"""
    discriminator_lr: float = setting(4e-4, at_least=0)
    """Adam's learning rate for the discriminator (release: 2e-4)"""
    latent_dim: int = setting(128, at_least=1)
    """size of a latent (paper: z)"""
    generator_width: int = setting(64, at_least=1)
    """unit of both networks' channels: blocks have 4 times as many at 32 pixels"""
    released: bool = False
    """the released code: hinge losses, features without gradient or gate, uniform class weights, images in [-1, 1] for
    the GAN's teacher, synthetic images stretched to [0, 1]
    """
    paired_labels: bool = True
    """the discriminator's fakes have the labels of its real images (Eq. 8 has one y); off, or released: drawn anew"""
    blend_threshold: float = setting(0.7, at_least=0, at_most=1)
    """features are blended in a step whose uniform draw is above it (paper: q)"""
    frequency_momentum: float = setting(0.5, at_least=0, at_most=1)
    """share of a batch in the running class frequencies (paper: gamma)"""
    reg_mean_one: bool = setting(False, formerly=False)
    """class weights in L_reg have mean 1, as the authors' regulariser scales them; off: Eq. 12, mean of K or more"""
    alignment: Literal["simkd", "pooled", "kd"] = "simkd"
    """simkd: maps through a projector (release); pooled: Eq. 14; both share the teacher's classifier; kd: the logits"""
    kd_temperature: float = 4.0
    """temperature of the ablation's distillation loss"""
    d_gan_weight: float = 1.0
    """weight of the discriminator's -L_d"""
    d_adc_weight: float = 1.0
    """weight of its classes"""
    blend_weight: float = 0.1
    """weight of L_blend (paper: lambda_d); 0 for the ablation"""
    trans_weight: float = 0.1
    """weight of L_trans (paper: lambda_d); 0 for the ablation"""
    g_gan_weight: float = 1.0
    """weight of the generator's L_g"""
    g_adc_weight: float = 1.0
    """weight of its classes"""
    reg_weight: float = 0.1
    """weight of L_reg (paper: lambda_g); 0 for the ablation: no category frequency smoothing"""
    align_weight: float = 1.0
    """weight of L_align"""

    def following(self, before: Self, share: float) -> dict[str, int]:
        return following(self, before, share)


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
