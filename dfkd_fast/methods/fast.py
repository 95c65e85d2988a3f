"""Fast: Up to 100x Faster Data-Free Knowledge Distillation (FastDFKD, "FM").

Fang, Mo, Wang, Song, Bei, Zhang, Song. AAAI 2022. arXiv:2112.06253. Values and order of the authors' release.

Deviations from the release: one generator is adapted in place, no clone is built in a round; the pool is uint8 tensors
and remembers labels; frozen networks get no weight gradients. docs/methods/fast.md goes through it line by line.
Distributed: generator and start per rank, BN moments per rank, pool sharded by rank; with `--bn.scope global` one
generator and start on all ranks, moments of the global batch, the whole pool on each rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dfkd_fast.config.setting import setting
from dfkd_fast.errors import UserError
from dfkd_fast.generators.latent import LatentGenerator
from dfkd_fast.generators.meta_init import MetaInit, Start
from dfkd_fast.losses.adversarial import disagreement
from dfkd_fast.losses.generator import label_ce
from dfkd_fast.methods.base import Inner, LossTerms, Method, MethodConfig, Setup, Supports, SynthBatch
from dfkd_fast.methods.recipe import rounds_in_epoch
from dfkd_fast.models.statistics import PoolStatistics


@dataclass(frozen=True, kw_only=True)
class FastConfig(MethodConfig):
    """The recipe of Fast; defaults are the released script's for Fast-5, ResNet-34 to ResNet-18."""

    synthesis_steps: int = 5
    """inner steps in one round (paper: k; release: g_steps)"""
    image_budget: int | None = setting(None, at_least=1, shared_out=True)
    """images made in all, spread evenly over the epochs (MUSE's comparison); without it one round an epoch"""
    generator_lr: float = setting(3e-3, at_least=0, synthesis_rate=True)
    """inner Adam's learning rate for the generator (release: lr_g)"""
    latent_lr: float = setting(1e-2, at_least=0)
    """inner Adam's learning rate for the latents (release: lr_z)"""
    start: Start = "fomaml"
    """where a round's generator starts: learned by fomaml (the tables) or reptile (ImageNet), carry (the released plain
    `fast`: where the last round ended), or fresh
    """
    meta_lr: float | None = setting(None, at_least=0)
    """outer Adam's learning rate of a learned start; else generator_lr x synthesis_steps, as released for CIFAR"""
    meta_latent_lr: float = setting(0.0, at_least=0)
    """outer learning rate of latents that all rounds share (release: ImageNet); 0: each round draws its own"""
    meta_life: int = setting(0, at_least=0)
    """every so many epochs shared latents are drawn anew and the outer Adam starts afresh (release: ImageNet, 50); 0:
    never
    """
    reptile_scale: float = setting(67.0, any_number=True)
    """factor on Reptile's gradient (release: 67 for CIFAR, 1 for ImageNet)"""
    reset_epoch: int = setting(120, at_least=0)
    """the start's first layers are drawn anew once, this many epochs after warm-up (release: reset_l0); 0, or a fresh
    start: never
    """
    latent_dim: int = setting(256, at_least=1)
    """size of a latent, channels where it is spatial (paper: z)"""
    spatial_latents: bool = False
    """latents are maps of H/16 x W/16 positions, for a deeper generator without a linear stem (release: ImageNet)"""
    generator_width: int = setting(128, at_least=1)
    """channels of the generator's first blocks; the last have half"""
    bn_momentum: float = setting(0.9, at_least=0, at_most=1)
    """share of the pool in the BN statistics that are matched (release: bn_mmt)"""
    ce_weight: float = 0.5
    """weight of the label term (release: oh; 0.4 for Wide ResNets)"""
    bn_weight: float = 10.0
    """weight of the BN-statistics term"""
    adv_weight: float = 1.33
    """weight of the adversarial term (release: 1.1 for Wide ResNets, 1.0 for VGG)"""


class Fast(Method):
    paper = "arXiv:2112.06253"
    supports = Supports(global_batch=True, micro_batches=True, without_student=True)

    config: FastConfig
    labels: Tensor

    def __init__(self, config: FastConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        if config.spatial_latents and config.reset_epoch:
            raise UserError(f"--method.reset-epoch {config.reset_epoch}: spatial latents have no such layers; choose 0")
        self.generator = LatentGenerator(
            config.synthesis_batch_size,
            config.latent_dim,
            setup.info.image_size,
            spatial=config.spatial_latents,
            width=config.generator_width,
            in_chans=setup.info.in_chans,
            global_batch=setup.global_batch,
        )
        self.start = MetaInit(
            self.generator,
            config.start,
            lr=config.generator_lr * config.synthesis_steps if config.meta_lr is None else config.meta_lr,
            own_lrs={"latents": config.meta_latent_lr},
            reptile_scale=config.reptile_scale,
        )
        self.statistics = PoolStatistics(setup.teacher.targets, config.bn_momentum)
        groups = partial(self.generator.parameter_groups, lr=config.generator_lr, latent_lr=config.latent_lr)
        self.inner = Inner(config, self.step, groups, after=self.start.after_step)
        self.register_buffer("labels", torch.zeros(config.synthesis_batch_size, dtype=torch.int64), persistent=False)

    def rounds(self, epoch: int) -> int:
        budget, config = self.config.image_budget, self.config
        size = config.synthesis_batch_size
        return rounds_in_epoch(epoch, epochs=config.epochs, capacity=budget, batch_size=size) if budget else 1

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        config = self.config
        adversarial = epoch + 1 >= config.warmup_epochs  # the release starts one epoch before distillation does
        for index in range(self.rounds(epoch)):
            if index == 0:
                self.renew_start(epoch)
            self.start.begin()
            if not config.meta_latent_lr:
                self.generator.draw_latents()
            self.labels.random_(self.info.num_classes)
            images = self.inner.run(config.synthesis_steps, adversarial=adversarial)
            self.start.finish()
            self.statistics.update()
            yield SynthBatch(images, self.global_batch.local_rows(self.labels))

    def renew_start(self, epoch: int) -> None:
        """What of the start begins anew with an epoch: its first layers once, shared latents every `meta_life`."""
        config = self.config
        self.start.reset_once(epoch, warmup_epochs=config.warmup_epochs, reset_epoch=config.reset_epoch)
        if config.meta_life and (epoch + 1) % config.meta_life == 0:
            self.start.weights.draw_latents()
            self.start.reset_optimizer()

    def step(self, *, adversarial: bool) -> tuple[Tensor, LossTerms]:
        """Images, and the label, BN-statistics and adversarial terms."""
        images = self.generator()
        view = self.augment(images)
        teacher = self.teacher(view)
        terms = {
            "ce": label_ce(teacher.logits, self.global_batch.local_rows(self.labels)),
            "bn": self.statistics.loss(teacher.moments),
        }
        if adversarial:
            terms["adv"] = disagreement(self.student(view), teacher.logits)
        return images, terms
