"""SSD-KD: Small Scale Data-Free Knowledge Distillation.

Liu, Wang, Liu, Sun, Yao. CVPR 2024. arXiv:2406.07876. Algorithm 1. No code was released, the supplement is not
public: the rest is Fast's (arXiv:2112.06253) or of prioritised replay (arXiv:1511.05952), see docs/methods/ssdkd.md.
Distributed: generator per rank, BN moments per rank, buffer and priorities sharded by rank; with `--bn.scope global`
one generator on all ranks, moments of the global batch, the whole buffer and its priorities on each rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dfkd_fast.config.setting import setting
from dfkd_fast.generators.latent import LatentGenerator
from dfkd_fast.generators.meta_init import MetaInit, Start
from dfkd_fast.losses.adversarial import disagreement
from dfkd_fast.losses.distillation import kd_kl
from dfkd_fast.losses.generator import label_ce, modulation
from dfkd_fast.methods.base import Inner, LossTerms, Method, MethodConfig, PoolPlan, Setup, Supports, SynthBatch
from dfkd_fast.models.statistics import PoolStatistics
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.pool.pool import Pool, PoolBatch
from dfkd_kernels import PrioritySampler, kd_kl_priority


@dataclass(frozen=True, kw_only=True)
class SsdkdConfig(MethodConfig):
    """The recipe of SSD-KD at a tenth of CIFAR's size; what the paper leaves open is Fast's."""

    synthesis_steps: int = 2
    """generator steps in one round (paper: T_g)"""
    student_steps: int = 40
    """student steps in one epoch (paper: T_kd)"""
    buffer_size: int = setting(5000, at_least=1, shared_out=True)
    """images in the replay buffer, of which the oldest go first (paper: |B|)"""
    generator_lr: float = setting(5e-3, at_least=0, synthesis_rate=True)
    """Adam's learning rate for the generator"""
    latent_lr: float = setting(1.5e-2, at_least=0)
    """Adam's learning rate for the latents"""
    start: Start = "fresh"
    """where a round's generator starts: fresh (Alg. 1 line 4), or as in Fast: learned by fomaml or reptile, or carry"""
    reset_epoch: int = setting(0, at_least=0, formerly=0)
    """epochs after warm-up at which the start's first layers are drawn anew, as Fast; 0, or a fresh start: never"""
    diversity: bool = True
    """weaken the label term for classes that fill the buffer (Eq. 3, first factor); off for the ablation"""
    focus: float = setting(2.0, at_least=0)
    """exponent that weakens the label term for images that the teacher is sure of (paper: gamma); 0: none"""
    priority_sampling: bool = True
    """draw student batches by priority (section 3.4); off for the ablation: uniformly, without replacement"""
    priority_exponent: float = setting(0.6, at_least=0)
    """exponent of the priorities (paper: alpha)"""
    is_exponent: float = setting(0.4, at_least=0)
    """exponent of the importance weights (paper: beta); 0: no correction"""
    is_normalized: bool = setting(False, formerly=False)
    """divide the importance weights by the largest of the batch, as prioritised replay does; off: Eq. 5"""
    is_weighted_loss: bool = setting(True, formerly=True)
    """importance weights also weigh the student's loss (section 3.4); off: priorities alone (Alg. 1 line 18)"""
    priority_eps: float = setting(1e-6, above=0)
    """added to every priority, so that any image may be drawn (paper: epsilon)"""
    latent_dim: int = setting(256, at_least=1)
    """size of a latent (paper: z)"""
    generator_width: int = setting(128, at_least=1)
    """channels of the generator's first block; the last has half"""
    bn_momentum: float = setting(0.9, at_least=0, at_most=1)
    """share of the pool in the BN statistics that are matched; 0: Eq. 1 as written"""
    ce_weight: float = 0.5
    """weight of the modulated label term"""
    bn_weight: float = 10.0
    """weight of the BN-statistics term"""
    adv_weight: float = 1.33
    """weight of the adversarial term"""
    adv_masked: bool = setting(True, formerly=True)
    """push only images on which student and teacher still agree, as Fast; off: all of them, Eq. 2 as printed"""
    label_source: Literal["random", "teacher"] = setting("random", formerly="random")
    """y of the label term: random, a class drawn for each image, as Fast; teacher, what it predicts (paper: "e.g.")"""
    priority_temperature: float | None = setting(None, above=0, formerly=None)
    """temperature of the KL in a priority; without it that of the student's loss; 1: the logits' softmax (paper)"""


class Ssdkd(Method):
    paper = "arXiv:2406.07876"
    supports = Supports(global_batch=True, micro_batches=True)

    config: SsdkdConfig
    labels: Tensor
    class_shares: Tensor

    def __init__(self, config: SsdkdConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        size, info, rows = config.synthesis_batch_size, setup.info, setup.global_batch
        width, side, chans = config.generator_width, info.image_size, info.in_chans
        self.generator = LatentGenerator(size, config.latent_dim, side, width=width, in_chans=chans, global_batch=rows)
        lr = config.generator_lr * config.synthesis_steps  # as in Fast's release
        self.start = MetaInit(self.generator, config.start, lr=lr, own_lrs={"latents": 0.0})
        self.statistics = PoolStatistics(setup.teacher.targets, config.bn_momentum)
        groups = partial(self.generator.parameter_groups, lr=config.generator_lr, latent_lr=config.latent_lr)
        self.inner = Inner(config, self.step, groups, after=self.start.after_step)
        self.priority_temperature = config.priority_temperature or config.kd_temperature
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64), persistent=False)
        self.register_buffer("class_shares", torch.zeros(info.num_classes), persistent=False)

    def pools(self) -> tuple[PoolPlan, ...]:
        (plan,) = super().pools()
        ring = plan._replace(capacity=self.config.buffer_size, policy="ring", labels_are_votes=True)
        return (ring._replace(opened=self.open_buffer),)

    def open_buffer(self, pool: Pool) -> PrioritySampler | None:
        """Take the replay buffer, which Eq. 3 counts, and return its priorities."""
        config, self.pool = self.config, pool
        if not config.priority_sampling:
            return None
        exponents = (config.priority_exponent, config.is_exponent, config.priority_eps)
        self.priorities = PrioritySampler(pool.capacity, *exponents, device=pool.labels.device)
        return self.priorities

    def rounds(self, epoch: int) -> int:
        return 1

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        """Algorithm 1, lines 4 to 13."""
        config = self.config
        for _ in range(self.rounds(epoch)):
            self.start.reset_once(epoch, warmup_epochs=config.warmup_epochs, reset_epoch=config.reset_epoch)
            self.start.begin()  # line 4
            self.generator.draw_latents()  # line 5
            self.labels.random_(self.info.num_classes)
            if config.diversity:  # integers' / is float32
                self.class_shares.copy_(self.pool.class_counts).div_(self.pool.size.clamp(min=1))
            adversarial = epoch + 1 >= config.warmup_epochs  # as in Fast's release
            images = self.inner.run(config.synthesis_steps, adversarial=adversarial)  # lines 6 to 11
            self.start.finish()
            self.statistics.update()
            yield self.judged(images)

    def step(self, *, adversarial: bool) -> tuple[Tensor, LossTerms]:
        """Images and the terms of Eqs. 1 and 2."""
        images = self.generator()  # line 7
        view = self.augment(images)
        teacher = self.teacher(view)
        random = self.config.label_source == "random"
        labels = self.global_batch.local_rows(self.labels) if random else teacher.logits.argmax(dim=1)
        phi = modulation(teacher.logits, self.class_shares, self.config.focus)  # Eq. 3
        terms = {
            "bn": self.statistics.loss(teacher.moments),  # Eq. 1
            "ce": label_ce(teacher.logits, labels, weights=phi),  # Eq. 2, third term
        }
        if adversarial:
            terms["adv"] = disagreement(self.student(view), teacher.logits, masked=self.config.adv_masked)  # second
        return images, terms

    def judged(self, images: Tensor) -> SynthBatch:
        """Images with the classes that the teacher sees, which Eq. 3 asks the buffer for, and their first priorities:
        Eq. 4 with w = 1 (lines 12 and 13).
        """
        with self.inner.inference():
            teacher = self.teacher(view := self.augment.normalize(images), moments=False).logits
            first = kd_kl(self.student(view), teacher, self.priority_temperature, reduction="none")
            return SynthBatch(images, teacher.argmax(dim=1), initial_priorities=first)

    def student_loss(self, batch: PoolBatch, teacher: NetOutput, student: NetOutput) -> LossTerms:
        logits, temperature = (student.logits, teacher.logits), self.config.kd_temperature
        if batch.is_weights is None:
            return {"kd": kd_kl(*logits, temperature)}
        weights, gather = batch.is_weights, self.global_batch.all_gather
        if self.config.is_normalized:
            weights = weights / gather(weights).max()
        # lines 18 to 21 in one pass: the losses, and w x loss back as the images' new priorities (Eq. 4 to 6)
        if self.global_batch or self.priority_temperature != temperature:  # every rank has all priorities
            rows = kd_kl(*logits, temperature, reduction="none")
            deltas = kd_kl(*logits, self.priority_temperature, reduction="none")
            self.priorities.update(gather(batch.indices), gather((weights * deltas).detach()))
        else:
            rows = kd_kl_priority(*logits, batch.indices, weights, self.priorities, temperature)
        return {"kd": (weights * rows if self.config.is_weighted_loss else rows).mean()}
