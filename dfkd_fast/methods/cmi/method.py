"""CMI: Contrastive Model Inversion for Data-Free Knowledge Distillation.

Fang, Song, Wang, Shen, Wang, Song. IJCAI 2021. arXiv:2105.08584. Values and order of the authors' release, whose three
protocols are presets: images first and then adversarial (the tables'), from scratch, images first only.

Deviations from the release: the bank lies on the device, and global features that get no gradient build no graph; its
draws have a static shape; everything is re-initialised in place; the pool is uint8 tensors and remembers labels; frozen
networks get no weight gradients. docs/methods/cmi.md goes through it line by line.
Distributed: generator, head, bank, BN moments and part of the pool per rank; `--bn.scope global`: one of each, on all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dfkd_fast.augment import Augment
from dfkd_fast.config.setting import setting
from dfkd_fast.errors import UserError
from dfkd_fast.generators.latent import LatentGenerator
from dfkd_fast.generators.layers import dcgan_init
from dfkd_fast.losses.adversarial import disagreement
from dfkd_fast.losses.generator import label_ce
from dfkd_fast.methods.base import Inner, LossTerms, Method, MethodConfig, Setup, Supports, SynthBatch, parameters_of
from dfkd_fast.methods.cmi.instance_features import (
    FeatureBank,
    ProjectionHead,
    describe,
    description_width,
    instance_discrimination,
)
from dfkd_fast.models.teacher import NetOutput
from dfkd_kernels import bn_stat_loss


@dataclass(frozen=True, kw_only=True)
class CmiConfig(MethodConfig):
    """The recipe of CMI; defaults are the released script of the adversarial protocol."""

    epochs: int = 236
    """epochs in all, warm-up included (release: 40 after 50,000 images)"""
    warmup_epochs: int = 196
    """first epochs, which only fill the pool, without the adversarial term (release: pre-inverted images)"""
    warmup_rounds: int = setting(1, at_least=0)
    """synthesis rounds in a warm-up epoch"""
    rounds: int = setting(1, at_least=0)
    """synthesis rounds in an epoch; 0: all images are made in the warm-up, before the student starts"""
    synthesis_steps: int = 200
    """generator steps in one round (release: g_steps; the tables' name says 500)"""
    batch_size: int = 128
    """student batch"""
    student_steps: int = 2000
    """student steps in one epoch"""
    student_lr: float = 0.1
    """peak learning rate of the student's SGD"""
    student_lr_min: float = 0.0
    """learning rate at the end of the cosine"""
    generator_lr: float = setting(1e-3, at_least=0, synthesis_rate=True)
    """Adam's learning rate for generator, latents and head (release: lr_g)"""
    latent_dim: int = setting(256, at_least=1)
    """size of a latent (release: nz)"""
    generator_width: int = setting(128, at_least=1)
    """channels of the generator's first blocks; the last have half"""
    feature_layers: tuple[str, ...] = ()
    """modules whose inputs describe an image (release: layer1 to layer4 for ResNet-34); none: every BatchNorm"""
    head_features: int = setting(256, at_least=1)
    """size of a projected feature (release: head_dim)"""
    bank_size: int = setting(40960, at_least=1)
    """earlier images whose features are kept"""
    num_negatives: int = setting(4096, at_least=1)
    """of these, how many are drawn in a step (release: n_neg)"""
    local_scale: float = setting(0.25, above=0, at_most=1)
    """least share of the image's area in a local view"""
    contrastive_temperature: float = setting(0.1, above=0)
    """temperature of the contrastive loss (paper: tau; release: cr_T, 0.2 in one script)"""
    ce_weight: float = 0.5
    """weight of the label term (paper: alpha; release: oh, 1 from scratch)"""
    bn_weight: float = 1.0
    """weight of the BN-statistics term"""
    adv_weight: float = 0.5
    """weight of the adversarial term"""
    contrastive_weight: float = 0.8
    """weight of the contrastive term (release: cr); 0: plain model inversion"""


class Cmi(Method):
    paper = "arXiv:2105.08584"
    supports = Supports(global_batch=True, without_student=True)

    config: CmiConfig
    labels: Tensor
    features: Tensor

    def __init__(self, config: CmiConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        size, side, chans = config.synthesis_batch_size, setup.info.image_size, setup.info.in_chans
        if config.bank_size < size:
            raise UserError(f"--method.bank-size {config.bank_size}: choose {size} or more, the images of a round")
        if not 0 < config.local_scale < 1:
            raise UserError(f"--method.local-scale {config.local_scale}: choose a share between 0 and 1")
        width, rows = config.generator_width, setup.global_batch
        self.generator = LatentGenerator(size, config.latent_dim, side, width=width, in_chans=chans, global_batch=rows)
        view = partial(Augment, setup.info, flip=config.flip, global_batch=rows)
        self.global_view = view(pad=config.crop_padding, crop_scale=config.crop_scale)
        self.local_view = view(crop_scale=config.local_scale)
        self.feature_maps = tuple(f"{name}:input" for name in config.feature_layers) or self.teacher.norm_inputs
        if not self.feature_maps:
            raise UserError("--method.feature-layers: missing; the teacher has no BatchNorm layers, which stand for it")
        try:
            self.teacher.prepare(self.feature_maps)
            width = description_width(self.teacher, self.feature_maps)
        except ValueError as error:
            raise UserError(f"--method.feature-layers: {error}") from error
        self.head = ProjectionHead(width, config.head_features)
        self.bank = FeatureBank(config.bank_size, 2 * width)
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64), persistent=False)
        self.register_buffer("features", torch.zeros(size, 2 * width), persistent=False)
        lr = config.generator_lr
        head = parameters_of(self.head, lr, betas=(0.9, 0.999))
        self.inner = Inner(config, self.step, parameters_of(self.generator, lr), lasting=head)

    def rounds(self, epoch: int) -> int:
        return self.config.warmup_rounds if epoch < self.config.warmup_epochs else self.config.rounds

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        config = self.config
        adversarial = config.adv_weight > 0 and epoch >= config.warmup_epochs
        for _ in range(self.rounds(epoch)):
            dcgan_init(self.generator)
            self.generator.draw_latents()
            self.labels.random_(self.info.num_classes)
            images, features = self.inner.run(config.synthesis_steps, adversarial=adversarial)
            self.bank.add(features)
            yield SynthBatch(images, self.global_batch.local_rows(self.labels))

    def step(self, *, adversarial: bool) -> tuple[tuple[Tensor, Tensor], LossTerms]:
        """Images, the descriptions of all ranks' for the bank, and the loss terms."""
        images = self.generator()
        view = self.global_view(images)
        teacher = self.teacher(view, maps=self.feature_maps)
        terms = {"ce": label_ce(teacher.logits, self.global_batch.local_rows(self.labels))}
        if self.config.bn_weight:
            terms["bn"] = bn_stat_loss(teacher.moments, self.teacher.targets)
        if adversarial:
            terms["adv"] = disagreement(self.student(view), teacher.logits)
        if self.config.contrastive_weight:
            terms["contrastive"] = self.contrast(images, teacher)
        return (images, self.features), terms

    def contrast(self, images: Tensor, whole: NetOutput) -> Tensor:
        """How well a part of each image, new or stored, finds its whole among all (paper: L_cr)."""
        part = self.teacher(self.local_view(images), maps=self.feature_maps, moments=False)
        local_features, global_features = map(self.global_batch.all_gather, (describe(part), describe(whole).detach()))
        self.features.copy_(torch.cat([local_features.detach(), global_features], dim=1))
        stored, is_filled = self.bank.sample(self.config.num_negatives)
        stored_local, stored_global = stored.chunk(2, dim=1)
        # in this order: autocast keeps the weights it has cast, and without a graph they would get no gradient after
        projected_local = self.head(local_features, stored_local)
        with torch.no_grad():
            projected_global = self.head(global_features, stored_global)
        return instance_discrimination(
            projected_local,
            projected_global,
            num_new=len(local_features),
            is_filled=is_filled,
            temperature=self.config.contrastive_temperature,
        )
