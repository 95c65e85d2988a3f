"""DeepInversion: Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion.

Yin, Molchanov, Alvarez, Li, Mallya, Hoiem, Jha, Kautz. CVPR 2020. arXiv:1912.08795. Sections 3.2 (DeepInversion) and
3.3 (Adaptive DeepInversion). Defaults are those of the re-implementation that the field's tables come from (CMI's and
Fast's authors); the original's values are options and presets.

Deviations: kept is the iterate whose loss was lowest (both codes mean to, and keep the last); the pixels are redrawn in
place; the pool is uint8 tensors; frozen networks get no weight gradients. docs/methods/deepinversion.md has the rest.
Distributed: images per rank, BN moments per rank, pool sharded by rank; with `--bn.scope global` all pixels are on all
ranks, each of which shows the teacher its part; moments of the global batch, the whole pool on each rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd_fast.augment import Augment, jitter
from dfkd_fast.config.setting import setting
from dfkd_fast.errors import UserError
from dfkd_fast.losses.adversarial import competition
from dfkd_fast.losses.generator import l2, label_ce, tv_l1, tv_l2
from dfkd_fast.methods.base import Inner, LossTerms, Method, MethodConfig, Setup, Supports, SynthBatch
from dfkd_fast.optim import cosine
from dfkd_fast.rng import balanced_labels
from dfkd_kernels import bn_stat_loss


@dataclass(frozen=True, kw_only=True)
class DeepInversionConfig(MethodConfig):
    """The recipe of DeepInversion; defaults are the re-implementation's CIFAR-10 script."""

    epochs: int = 200
    """epochs in all, warm-up included"""
    warmup_epochs: int = 0
    """first epochs, which only fill the pool, without competition"""
    synthesis_steps: int = 1000
    """steps on one batch of images, those at low resolution included (the tables' "2k": 2000)"""
    student_lr: float = 0.1
    """peak learning rate of the student's SGD"""
    student_lr_min: float = 0.0
    """learning rate at the end of the cosine"""
    warmup_rounds: int = setting(1, at_least=0)
    """batches of images in a warm-up epoch"""
    rounds: int = setting(1, at_least=0)
    """batches of images in an epoch; 0: all images are made in the warm-up, before the student starts"""
    image_lr: float = setting(0.1, at_least=0, synthesis_rate=True)
    """Adam's learning rate for the normalised pixels (original: 0.25 at 224 pixels)"""
    image_betas: tuple[float, float] = setting((0.5, 0.99), at_least=0, at_most=1)
    """Adam's betas for the pixels (original: 0.5 0.9)"""
    lr_warmup_steps: int = setting(0, at_least=0)
    """steps in which the pixels' rate rises, in each stage, before it falls as a cosine (original: 100); 0: constant"""
    low_res_steps: int = setting(0, at_least=0)
    """first steps, on images pooled to half their size (original: 2000 of 3000)"""
    jitter: int = setting(4, at_least=0)
    """largest roll of the batch in pixels, half of it at low resolution (H/8; original: 2 for CIFAR-10, 30 at 224)"""
    jitter_flip: bool = True
    """mirror the whole batch half of the time; off for images with a side (original: off for CIFAR-10)"""
    clip: bool = True
    """bring the pixels back to [0, 1] after each step (original: off for CIFAR-10)"""
    balanced: bool = False
    """every class equally often in a batch (original: CIFAR-10); otherwise labels are drawn"""
    ce_weight: float = 1.0
    """weight of the label term"""
    bn_weight: float = 10.0
    """weight of the BN-statistics term (paper: alpha_f; original: 0.01 at 224)"""
    first_bn_weight: float = setting(1.0, any_number=True)
    """factor on the first BatchNorm's part of it (original: 10 at 224)"""
    adv_weight: float = 1.0
    """weight of the competition with the student (paper: alpha_c; original: 0.2); 0: DeepInversion proper"""
    adv_clamp: bool = False
    """let the competition end where the divergence reaches 1 (original)"""
    tv_l1_weight: float = 0.0
    """weight of the total variation by absolute differences (CMI's code: 0.001)"""
    tv_l2_weight: float = 0.0
    """weight of the total variation by norms (paper: alpha_tv; original: 1e-4 at 224, 2.5e-5 for CIFAR-10)"""
    l2_weight: float = 0.0
    """weight of the images' norm (paper: alpha_l2; original: 1e-5 at 224)"""


class DeepInversion(Method):
    paper = "arXiv:1912.08795"
    supports = Supports(global_batch=True, micro_batches=True, without_student=True)

    config: DeepInversionConfig
    bn_weights: Tensor
    pixels: Tensor
    labels: Tensor

    def __init__(self, config: DeepInversionConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.augment = Augment(setup.info)
        size, side, steps = config.synthesis_batch_size, setup.info.image_size.short, config.synthesis_steps
        for flag, value, limit in (("jitter", config.jitter, side), ("low-res-steps", config.low_res_steps, steps)):
            if not 0 <= value < limit:
                raise UserError(f"--method.{flag} {value}: choose from 0 to {limit - 1}")
        weights = torch.ones(len(setup.teacher.targets))
        weights[:1] = config.first_bn_weight
        # none of these is saved: no round goes on with the pixels of another
        self.register_buffer("bn_weights", weights, persistent=False)
        self.register_buffer("pixels", torch.zeros(size, *setup.info.shape), persistent=False)
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64), persistent=False)
        after = self.clip if config.clip else None
        self.inner = Inner(config, self.step, self.parameter_groups, betas=config.image_betas, after=after)

    def rounds(self, epoch: int) -> int:
        return self.config.warmup_rounds if epoch < self.config.warmup_epochs else self.config.rounds

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        config = self.config
        adversarial = config.adv_weight > 0 and epoch >= config.warmup_epochs
        low = config.low_res_steps
        for _ in range(self.rounds(epoch)):
            self.draw()
            if low:
                self.optimize(low, adversarial=adversarial, low_res=True)
            images = self.optimize(config.synthesis_steps - low, adversarial=adversarial, low_res=False)
            yield SynthBatch(images, self.global_batch.local_rows(self.labels))

    @torch.no_grad()
    def draw(self) -> None:
        """Pixels of noise and the classes that they are to become."""
        self.pixels.normal_()
        if self.config.balanced:
            self.labels.copy_(balanced_labels(len(self.labels), self.info.num_classes, device=self.labels.device))
        else:
            self.labels.random_(self.info.num_classes)

    def optimize(self, steps: int, *, adversarial: bool, low_res: bool) -> Tensor:
        """So many steps, whose learning rate rises linearly and falls along a cosine where there is a warm-up."""
        warmup = self.config.lr_warmup_steps

        def scale(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return cosine((step - warmup) / (steps - warmup)) if warmup else 1.0

        images: Tensor = self.inner.run(steps, lr_scale=scale, adversarial=adversarial, low_res=low_res)
        return images

    def step(self, *, adversarial: bool, low_res: bool = False) -> tuple[Tensor, LossTerms]:
        """Images in [0, 1], and the terms of R_feature, R_compete and R_prior."""
        pixels = F.avg_pool2d(self.pixels, 2) if low_res else self.pixels
        whole = jitter(pixels, reach=self.config.jitter >> low_res, flip=self.config.jitter_flip)
        part, gather = self.global_batch.local_rows, self.global_batch.all_gather
        view = part(whole)
        teacher = self.teacher(view)
        terms = {"ce": label_ce(teacher.logits, part(self.labels))}
        if self.config.bn_weight:  # R_feature
            terms["bn"] = bn_stat_loss(teacher.moments, self.teacher.targets, weights=self.bn_weights)
        if adversarial:  # R_compete
            logits = gather(self.student(view)), gather(teacher.logits)
            terms["adv"] = competition(*logits, clamp=self.config.adv_clamp)
        for name, prior in (("tv_l1", tv_l1), ("tv_l2", tv_l2), ("l2", l2)):  # R_prior
            if getattr(self.config, f"{name}_weight"):
                terms[name] = prior(whole)
        return self.augment.denormalize(part(self.pixels.detach())).clamp(0, 1), terms

    @torch.no_grad()
    def clip(self) -> None:
        """Keep the pixels between black and white, as the teacher sees them."""
        mean, std = self.augment.mean, self.augment.std
        self.pixels.clamp_(-mean / std, (1 - mean) / std)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.pixels.requires_grad_()], "lr": self.config.image_lr}]
