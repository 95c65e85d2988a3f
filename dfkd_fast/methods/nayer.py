"""NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free Knowledge Distillation.

Tran, Le, Le, Harandi, Tran, Phung. CVPR 2024. arXiv:2310.00258. Algorithm 1; values and order of the authors' release.
Deviations: everything is re-initialised in place, frozen networks get no weight gradients; docs/methods/nayer.md.
Distributed: generator, BN moments and part of the pool per rank; `--bn.scope global`: one of each, on all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dfkd_fast.augment import jitter
from dfkd_fast.config.setting import setting
from dfkd_fast.generators.noisy import NoisyEmbeddingGenerator
from dfkd_fast.losses.adversarial import disagreement
from dfkd_fast.losses.generator import label_ce
from dfkd_fast.methods.base import Inner, LossTerms, Method, MethodConfig, Needs, Setup, Supports, SynthBatch
from dfkd_fast.methods.inner import parameters_of
from dfkd_fast.models.statistics import PoolStatistics
from dfkd_fast.models.teacher import frozen_alias, unregistered
from dfkd_fast.rng import epoch_labels
from dfkd_fast.text.label_embeddings import SOURCES


@dataclass(frozen=True, kw_only=True)
class NayerConfig(MethodConfig):
    """The recipe of NAYER; defaults are the released CIFAR-100 script's (E = 200: 220 epochs)."""

    synthesis_batch_size: int = 400
    """images made in one round (paper: B_G)"""
    synthesis_steps: int = 40
    """generator steps in one round (paper: g)"""
    batch_size: int = 512
    """student batch (paper: B_S)"""
    warmup_rounds: int = setting(10, at_least=0)
    """synthesis rounds in a warm-up epoch (release: 10 loops while warming up)"""
    rounds: int = setting(2, at_least=0)
    """synthesis rounds in an epoch (paper: I)"""
    generator_life: int = setting(10, at_least=0)
    """the whole generator is re-initialised every so many epochs (release: g_life; not in the paper); 0: never"""
    reset_noise: bool = True
    """draw the noisy layers anew in each round (paper: section 3.3); off for the ablation"""
    generator_lr: float = setting(4e-3, at_least=0, synthesis_rate=True)
    """Adam's learning rate for the whole generator"""
    noise_features: int = setting(1000, at_least=1)
    """output width of a noisy layer (paper: r)"""
    generator_width: int = setting(128, at_least=1)
    """channels of the generator's first blocks; the last have half"""
    generator_form: Literal["released", "printed"] = setting("released", formerly="released")
    """layers of the generator: those of the release, or of tables 8 and 9 as printed (spectral norm)"""
    bn_momentum: float = setting(0.9, at_least=0, at_most=1)
    """share of the pool in the BN statistics that are matched (release: bn_mmt)"""
    ce_weight: float = 0.5
    """weight of the label term (paper: alpha_cls)"""
    bn_weight: float = 10.0
    """weight of the BN-statistics term (paper: alpha_bn)"""
    adv_weight: float = 1.33
    """weight of the adversarial term (paper: alpha_adv)"""
    adv_masked: bool = setting(True, formerly=True)
    """push only images on which student and teacher still agree (release); off: all of them, Eq. 5 as printed"""
    student_mode: Literal["released", "eval"] = setting("released", formerly="eval")
    """the student in synthesis: in train mode from an epoch's second round on (release), or always in eval mode"""
    jitter: bool = False
    """roll by up to H/8 and flip whole batches before they may be kept (release: ImageNet only)"""


class Nayer(Method):
    paper = "arXiv:2310.00258"
    needs, supports = Needs(text=SOURCES), Supports(global_batch=True, micro_batches=True, without_student=True)
    config: NayerConfig
    labels: Tensor
    class_order: Tensor
    label_embeddings: Tensor

    def __init__(self, config: NayerConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self._students = unregistered(setup.student, frozen_alias(setup.student).train())  # by `student_trains`
        sizes = {"noise_features": config.noise_features, "width": config.generator_width}
        sizes |= {"batch_size": config.synthesis_batch_size, "printed": config.generator_form == "printed"}
        embedding_dim, rows = setup.label_embeddings.shape[1], setup.global_batch
        self.generator = NoisyEmbeddingGenerator.of(setup.info, embedding_dim, **sizes, global_batch=rows)
        self.statistics = PoolStatistics(setup.teacher.targets, config.bn_momentum)
        self.inner = Inner(config, self.step, parameters_of(self.generator, config.generator_lr))
        self.register_buffer("label_embeddings", setup.label_embeddings, persistent=False)
        self.register_buffer("class_order", torch.arange(setup.info.num_classes), persistent=False)
        self.register_buffer("labels", torch.zeros(config.synthesis_batch_size, dtype=torch.int64), persistent=False)

    def rounds(self, epoch: int) -> int:
        return self.config.warmup_rounds if epoch < self.config.warmup_epochs else self.config.rounds

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        """Algorithm 1, lines 3 to 11."""
        config, adversarial = self.config, epoch >= self.config.warmup_epochs  # the release counts before it asks
        for index in range(self.rounds(epoch)):
            if index == 0 and self.is_reborn(epoch):
                self.generator.reset_parameters()
            if config.reset_noise:
                self.generator.noise.reset_parameters()  # line 5
            self.labels.copy_(epoch_labels(len(self.labels), self.class_order, index))  # line 6
            trains = adversarial and config.student_mode == "released" and index > 0
            images = self.inner.run(config.synthesis_steps, adversarial=adversarial, student_trains=trains)  # 7 to 10
            self.statistics.update()
            yield SynthBatch(images, self.global_batch.local_rows(self.labels))  # line 11

    def step(self, *, adversarial: bool, student_trains: bool = False) -> tuple[Tensor, LossTerms]:
        """Images and the terms of Eq. 5."""
        images = self.generator(self.label_embeddings[self.labels])  # Eq. 3
        if self.config.jitter:
            images = jitter(images, reach=self.info.image_size.short // 8)
        view = self.augment(images)
        teacher = self.teacher(view)
        terms = {
            "ce": label_ce(teacher.logits, self.global_batch.local_rows(self.labels)),  # alpha_cls
            "bn": self.statistics.loss(teacher.moments),  # alpha_bn
        }
        if adversarial:
            student = self._students[student_trains](view)
            terms["adv"] = disagreement(student, teacher.logits, masked=self.config.adv_masked)  # alpha_adv
        return images, terms

    def is_reborn(self, epoch: int) -> bool:
        """Whether an epoch begins with a whole new generator (release: `g_life`)."""
        life = self.config.generator_life
        return bool(life) and (epoch % life == 0 or (epoch - self.config.warmup_epochs) % life == 0)
