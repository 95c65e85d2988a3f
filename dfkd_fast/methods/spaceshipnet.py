"""SpaceshipNet: Data-Free Knowledge Distillation via Feature Exchange and Activation Region Constraint.

Yu, Chen, Han, Jiang. CVPR 2023. Values and order of the authors' release.

Deviations from the release: maps are kept in the pool as 16-bit tensors, not in three databases; channels are exchanged
by one mask for the whole batch; activation maps need no hooks and no weight gradients. docs/methods/spaceshipnet.md
goes through it line by line.
Distributed: generator per rank, BN moments per rank, pool sharded by rank.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dfkd_fast.augment import Augment
from dfkd_fast.config.setting import setting
from dfkd_fast.generators.feature_decoder import CUTS, FeatureDecoder, exchange_channels
from dfkd_fast.generators.layers import kaiming_init
from dfkd_fast.losses.distillation import kd_kl
from dfkd_fast.losses.generator import label_ce
from dfkd_fast.methods.base import Inner, LossTerms, Method, MethodConfig, PoolPlan, Setup, StudentReads, SynthBatch
from dfkd_fast.methods.inner import parameters_of
from dfkd_fast.models.activation_maps import CamPair
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.pool.pool import PoolBatch
from dfkd_fast.rng import SHARED
from dfkd_kernels import bn_stat_loss

STORED = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class SpaceshipNetConfig(MethodConfig):
    """The recipe of SpaceshipNet; defaults are the released script's for CIFAR."""

    epochs: int = 200
    """epochs in all (release: 400 for Tiny-ImageNet)"""
    warmup_epochs: int = 0
    """first epochs, which only fill the pool"""
    synthesis_steps: int = 200
    """generator steps in the one round of an epoch (release: g_steps)"""
    student_steps: int = 2000
    """student steps in one epoch (release: kd_steps)"""
    student_lr: float = 0.1
    """peak learning rate of the student's SGD"""
    student_lr_min: float = 0.0
    """learning rate at the end of the cosine"""
    kd_temperature: float = 30.0
    """temperature of the distillation loss (paper: T)"""
    generator_lr: float = setting(1e-3, at_least=0, synthesis_rate=True)
    """Adam's learning rate for the generator, whose state starts anew in each round"""
    latent_dim: int = setting(256, at_least=1)
    """size of a latent (release: nz); latents are not optimised"""
    generator_width: int = setting(128, at_least=1)
    """channels of the generator's first blocks; the last have half"""
    exchange_probability: float = setting(0.7, at_least=0, at_most=1)
    """how often a student batch exchanges channels between its samples; 0: never"""
    stored_precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """what the maps are kept in (release: fp32): 0.21 MB for an image of 32 pixels in 16 bits"""
    grad_cam_stages: int = setting(3, at_least=0)
    """stages whose Grad-CAMs are compared, from the first on"""
    ce_weight: float = 0.5
    """weight of the label term"""
    bn_weight: float = 1.0
    """weight of the BN-statistics term"""
    cam_weight: float = 1.0
    """weight of the distance of all classes' activation maps"""
    grad_cam_weight: float = 1.0
    """weight of the distances of the stages' Grad-CAMs; this and cam_weight 0: without mSARC"""


class SpaceshipNet(Method):
    paper = "CVPR 2023"

    config: SpaceshipNetConfig
    labels: Tensor
    latents: Tensor

    def __init__(self, config: SpaceshipNetConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        size, side, chans = config.synthesis_batch_size, setup.info.image_size, setup.info.in_chans
        self.generator = FeatureDecoder(config.latent_dim, side, width=config.generator_width, in_chans=chans)
        kaiming_init(self.generator)
        crops = config.student_crops
        self.student_augment = Augment(setup.info, pad=crops.pad, flip=crops.flip)
        self.cams: CamPair | None = None
        if config.cam_weight or config.grad_cam_weight:
            self.cams = CamPair(setup.teacher, setup.student, config.grad_cam_stages if config.grad_cam_weight else 0)
        self.cut, self.stored = 0, STORED[config.stored_precision]
        self.inner = Inner(config, self.step, parameters_of(self.generator, config.generator_lr))
        self.register_buffer("labels", torch.arange(size) % setup.info.num_classes, persistent=False)
        self.register_buffer("latents", torch.zeros(size, config.latent_dim), persistent=False)

    def rounds(self, epoch: int) -> int:
        return 1

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        for _ in range(self.rounds(epoch)):
            self.generator.train()
            self.latents.normal_()
            size, classes = len(self.labels), self.info.num_classes
            if size < classes:  # a batch, or a rank's part of one, without room for all: the next in the next round
                self.labels.copy_((torch.arange(size) + epoch * size) % classes)
            images, maps = self.inner.run(self.config.synthesis_steps)
            stored = {f"maps{cut}": kept.to(self.stored) for cut, kept in zip(CUTS, maps, strict=True)}
            yield SynthBatch(images, self.labels, stored)

    def step(self) -> tuple[tuple[Tensor, tuple[Tensor, ...]], LossTerms]:
        """Images with their maps at every cut, and the label and BN-statistics terms."""
        images, maps = self.generator(self.latents)
        teacher = self.teacher(self.augment(images))
        terms = {"ce": label_ce(teacher.logits, self.labels)}
        if self.config.bn_weight:
            terms["bn"] = bn_stat_loss(teacher.moments, self.teacher.targets)
        return (images, maps), terms

    def pools(self) -> tuple[PoolPlan, ...]:
        (plan,) = super().pools()
        numbers = sum(math.prod(shape) for shape in self.generator.shapes)
        return (plan._replace(extra_bytes=numbers * self.stored.itemsize),)

    def student_variant(self) -> Hashable:
        if self.generator.training:  # student images come from the generator at rest
            self.generator.eval()
        self.cut = SHARED.choice(CUTS)  # ranks capture each of them at the same step
        return self.cut

    def student_view(self, batch: PoolBatch) -> Tensor:
        maps = exchange_channels(batch.extras[f"maps{self.cut}"], self.config.exchange_probability)
        return self.student_augment(self.generator.decode(maps, self.cut))

    def student_reads(self) -> StudentReads:
        if self.cams is None:
            return StudentReads()
        maps = self.cams.teacher_maps
        return StudentReads(self.cams.student_maps, maps, teacher_gradients=bool(maps))

    def student_loss(self, batch: PoolBatch, teacher: NetOutput, student: NetOutput) -> LossTerms:
        divergence = kd_kl(student.logits, teacher.logits.detach(), self.config.kd_temperature)
        terms = {"kd": divergence / self.info.num_classes}  # the release's mean is also over classes
        if self.cams:
            terms["cam"], terms["grad_cam"] = self.cams(teacher, student)
        return terms
