"""MSARC: Data free knowledge distillation with feature synthesis and spatial consistency for image analysis.

Liang, Chen, Wu, Pu, Huang, Chang, Ran. Scientific Reports 2024. Equations 4 to 17; no code is released. The generator's
adaptation is Fast's (Fang et al., AAAI 2022), whose released values stand wherever the paper has none;
docs/methods/msarc.md lists each such decision.
Distributed: generator and start per rank, BN moments per rank, pool sharded by rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dfkd_fast.config.setting import setting
from dfkd_fast.errors import UserError
from dfkd_fast.generators.dcgan import DcganDecoder, SoftmaxGain
from dfkd_fast.generators.latent import LatentGenerator
from dfkd_fast.generators.meta_init import MetaInit, Start
from dfkd_fast.losses.adversarial import disagreement
from dfkd_fast.losses.cam import Weighting
from dfkd_fast.losses.distillation import kd_kl
from dfkd_fast.losses.generator import label_ce
from dfkd_fast.methods.base import Inner, LossTerms, Method, MethodConfig, Setup, StudentReads, SynthBatch
from dfkd_fast.models.activation_maps import CamPair
from dfkd_fast.models.statistics import PoolStatistics
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.pool.pool import PoolBatch


@dataclass(frozen=True, kw_only=True)
class MsarcConfig(MethodConfig):
    """The recipe of MSARC; defaults are the paper's table 1, completed by Fast-2's released values."""

    synthesis_batch_size: int = 128
    """images made in one round (paper: one batch size; Fast-2: 256)"""
    synthesis_steps: int = 2
    """inner steps in one round (paper: generator optimization steps)"""
    batch_size: int = 128
    """images in one student step (paper: batch size; Fast-2: 256)"""
    generator_lr: float = setting(5e-3, at_least=0, synthesis_rate=True)
    """inner Adam's learning rate for the generator"""
    latent_lr: float = setting(0.015, at_least=0)
    """inner Adam's learning rate for the latents (paper: noise vector)"""
    start: Start = "fomaml"
    """where a round's generator starts: learned by fomaml or reptile, or without meta-learning: carry (where the last
    round ended) or fresh
    """
    meta_lr: float | None = setting(None, at_least=0)
    """outer Adam's learning rate of a learned start; without it generator_lr x synthesis_steps, as Fast"""
    meta_decay: float = setting(0.0, at_least=0, formerly=0.0)
    """weight of the learned start's L2 penalty, sum of squares over 2 (paper: gamma of Eq. 7, whose Omega it leaves
    open)
    """
    reset_epoch: int = setting(120, at_least=0)
    """epochs after warm-up at which the start's first layers are drawn anew, as Fast; 0, or a fresh start: never"""
    latent_dim: int = setting(256, at_least=1)
    """size of a latent (paper: z)"""
    generator_width: int = setting(512, at_least=1)
    """channels behind the generator's stem"""
    attention: bool = True
    """attention behind every block of the generator; off: a plain DCGAN"""
    attention_scale: float = setting(3e-2, any_number=True)
    """how much the attention adds to a map (paper: lambda)"""
    softmax_gain: SoftmaxGain = "hw"
    """hw: attention is 1 on average, not 1/(HW), which would leave it without effect; none: as Eq. 6 is written"""
    spectral_norm: bool = False
    """divide the generator's convolutions by their largest singular value (paper: figure 1 shows it)"""
    bn_momentum: float = setting(0.9, at_least=0, at_most=1)
    """share of the pool in the BN statistics that are matched, as Fast"""
    grad_cam_stages: int = setting(3, at_least=0)
    """stages whose Grad-CAMs are compared, from the first on, beside the class maps of the last layer (paper: L)"""
    msarc_alpha: tuple[float, ...] = setting((), any_number=True, formerly=())
    """weights of these stages, in their order, and then of the class maps (paper: alpha_l); without them 1 each"""
    cam_weighting: Weighting = "gradient"
    """how a channel counts in a Grad-CAM: by its gradient (Grad-CAM's own), or gradient_times_map (Eqs. 12, 13)"""
    cam_relu: bool = False
    """keep only what speaks for the class (Eq. 14)"""
    ce_weight: float = 0.5
    """weight of the label term (paper: kappa, of L_cls)"""
    bn_weight: float = 10.0
    """weight of the BN-statistics term (paper: kappa, of L_BN)"""
    adv_weight: float = 1.33
    """weight of the adversarial term (paper: 1, of -L_KD); 0: without it"""
    adv_masked: bool = setting(True, formerly=True)
    """push only images on which student and teacher still agree, as Fast; off: all of them, Eq. 16 as printed"""
    msarc_weight: float = 1.0
    """weight of the spatial consistency (paper: beta); 0: without it"""


class Msarc(Method):
    paper = "Scientific Reports 2024"

    config: MsarcConfig
    labels: Tensor

    def __init__(self, config: MsarcConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        size, side, chans = config.synthesis_batch_size, setup.info.image_size, setup.info.in_chans
        decoder = DcganDecoder(
            config.latent_dim,
            side,
            width=config.generator_width,
            in_chans=chans,
            attention=config.attention_scale if config.attention else None,
            gain=config.softmax_gain,
            spectral=config.spectral_norm,
        )
        self.generator = LatentGenerator(size, config.latent_dim, side, decoder=decoder)
        meta_lr = config.generator_lr * config.synthesis_steps if config.meta_lr is None else config.meta_lr
        if config.meta_decay and config.start in ("carry", "fresh"):
            raise UserError(f"--meta-decay {config.meta_decay}: --start {config.start} learns no start; choose 0")
        still, decay = {"latents": 0.0}, config.meta_decay
        self.start = MetaInit(self.generator, config.start, lr=meta_lr, own_lrs=still, decay=decay)
        self.statistics = PoolStatistics(setup.teacher.targets, config.bn_momentum)
        if config.msarc_alpha and not config.msarc_weight:
            raise UserError("--msarc-weight 0: compares no layers; leave it or --msarc-alpha out")
        layers = (config.grad_cam_stages, config.msarc_alpha, "--msarc-alpha")
        self.cams = CamPair(setup.teacher, setup.student, *layers) if config.msarc_weight else None
        groups = partial(self.generator.parameter_groups, lr=config.generator_lr, latent_lr=config.latent_lr)
        self.inner = Inner(config, self.step, groups, after=self.start.after_step)
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64), persistent=False)

    def rounds(self, epoch: int) -> int:
        return 1

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        config = self.config
        adversarial = config.adv_weight > 0 and epoch + 1 >= config.warmup_epochs  # when Fast's release starts
        for _ in range(self.rounds(epoch)):
            self.start.reset_once(epoch, warmup_epochs=config.warmup_epochs, reset_epoch=config.reset_epoch)
            self.start.begin()
            self.generator.draw_latents()
            self.labels.random_(self.info.num_classes)
            images = self.inner.run(config.synthesis_steps, adversarial=adversarial)
            self.start.finish()
            self.statistics.update()
            yield SynthBatch(images, self.labels)

    def step(self, *, adversarial: bool) -> tuple[Tensor, LossTerms]:
        """Images and the terms of Eq. 16."""
        images = self.generator()
        view = self.augment(images)
        teacher = self.teacher(view)
        terms = {
            "ce": label_ce(teacher.logits, self.labels),
            "bn": self.statistics.loss(teacher.moments),
        }
        if adversarial:
            terms["adv"] = disagreement(self.student(view), teacher.logits, masked=self.config.adv_masked)
        return images, terms

    def student_reads(self) -> StudentReads:
        if self.cams is None:
            return StudentReads()
        return StudentReads(
            self.cams.student_maps, self.cams.teacher_maps, teacher_features=True, teacher_gradients=True
        )

    def student_loss(self, batch: PoolBatch, teacher: NetOutput, student: NetOutput) -> LossTerms:
        terms = {"kd": kd_kl(student.logits, teacher.logits.detach(), self.config.kd_temperature)}  # Eq. 17
        if self.cams:
            config = self.config
            deep, shallow = self.cams(teacher, student, weighting=config.cam_weighting, relu=config.cam_relu)
            terms["msarc"] = deep + shallow  # Eq. 9
        return terms
