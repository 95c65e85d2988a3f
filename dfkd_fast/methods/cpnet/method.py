"""CPNet: Coupling the Generator with Teacher for Effective Data-Free Knowledge Distillation.

Chen, Li, Han, Xu, Shen. ICCV 2025. No arXiv id, no algorithm number; NAYER's loop with a generator that inverts the
teacher stage by stage. The paper's text was not at hand: values and order are those of the authors' code, which does
not run; docs/methods/cpnet.md says what is guessed.
Deviations: everything is re-initialised in place, the nodes follow from the teacher, hue is turned linearly.
Distributed: generator, BN moments and part of the pool per rank; CutMix needs whole batches, so not on all together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dfkd_fast.config.setting import setting
from dfkd_fast.losses.adversarial import disagreement
from dfkd_fast.messages.notes import note
from dfkd_fast.methods.base import Inner, LossTerms, Method, MethodConfig, Needs, Setup, SynthBatch, parameters_of
from dfkd_fast.methods.cpnet.generator import CoupledGenerator
from dfkd_fast.methods.cpnet.losses import FeatureAlignment, inversion, mixture_ce, restored
from dfkd_fast.methods.cpnet.nodes import described, find_nodes
from dfkd_fast.methods.cpnet.views import ColourJitter, cutmix
from dfkd_fast.models.statistics import PoolStatistics
from dfkd_fast.models.teacher import NetOutput, frozen_alias, unregistered
from dfkd_fast.rng import epoch_labels
from dfkd_fast.text.label_embeddings import SOURCES


@dataclass(frozen=True, kw_only=True)
class CpnetConfig(MethodConfig):
    """The recipe of CPNet; defaults are the released CIFAR-10 script's."""

    epochs: int = 320
    """epochs in all, warm-up included (release: 120 and 320)"""
    nodes: tuple[str, ...] = ()
    """BatchNorm layers of the teacher whose inputs the generator's stages make; none: chosen from them, printed"""
    synthesis_batch_size: int = 400
    """images made in one round"""
    synthesis_steps: int = 30
    """generator steps in one round (release: g_steps, 40 for CIFAR-100)"""
    batch_size: int = 512
    """student batch"""
    warmup_rounds: int = setting(10, at_least=0)
    """synthesis rounds in a warm-up epoch (release: gwp_loops)"""
    rounds: int = setting(2, at_least=0)
    """synthesis rounds in an epoch (release: g_loops)"""
    generator_life: int = setting(10, at_least=0)
    """the whole generator is re-initialised every so many epochs (release: g_life); 0: never"""
    generator_lr: float = setting(4e-3, at_least=0, synthesis_rate=True)
    """Adam's learning rate for the whole generator (release: lr_g)"""
    noise_features: int = setting(1000, at_least=1)
    """output width of a noisy layer (release: le_emb_size)"""
    bn_momentum: float = setting(0.9, at_least=0, at_most=1)
    """share of the pool in the BN statistics that are matched and divided out (release: bn_mmt)"""
    cutmix_probability: float = setting(0.5, at_least=0, at_most=1)
    """how often an image that the networks see in synthesis has a rectangle of another; 0: never"""
    colour_jitter: float = setting(0.1, at_least=0, at_most=0.5)
    """greatest change of brightness, contrast, saturation (as a share) and hue (of a circle) in synthesis; 0: none"""
    colour_jitter_probability: float = setting(0.4, at_least=0, at_most=1)
    """how often an image is changed so (release: p)"""
    smoothing: float = setting(0.1, above=0, at_most=0.9)
    """label smoothing that says how far features lie from a class (paper: s)"""
    least_singular_value: float = setting(0.1, above=0)
    """to which the classifier's singular values are raised before it is inverted (release: threshold)"""
    ce_weight: float = 0.5
    """weight of the label term (release: oh)"""
    bn_weight: float = 10.0
    """weight of the BN-statistics term"""
    inversion_weight: float = 1.0
    """weight of the sum over nodes of the distance between the generator's and the teacher's maps (release: 1)"""
    adv_weight: float = 1.33
    """weight of the adversarial term: minus the divergence where student and teacher agree"""
    align_weight: float = 1.33
    """weight of the features' alignment (release: adv's); 0: without it, and with any classifier"""
    student_mode: Literal["released", "eval"] = "released"
    """the student in synthesis: in train mode from an epoch's second round on (release), or always in eval mode"""


class Cpnet(Method):
    paper = "ICCV 2025"
    needs = Needs(text=SOURCES, norm_inputs=True)

    config: CpnetConfig
    labels: Tensor
    class_order: Tensor
    label_embeddings: Tensor

    def __init__(self, config: CpnetConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self._students = unregistered(setup.student, frozen_alias(setup.student).train())  # by `student_trains`
        self.nodes = find_nodes(setup.teacher, config.nodes)
        self.maps = tuple(node.map_name for node in self.nodes)
        setup.teacher.prepare(self.maps)
        sizes = {"batch_size": config.synthesis_batch_size, "noise_features": config.noise_features}
        embedding_dim = setup.label_embeddings.shape[1]
        self.generator = CoupledGenerator(self.nodes, setup.info, embedding_dim=embedding_dim, **sizes)
        strength, often = config.colour_jitter, config.colour_jitter_probability
        self.jitter = ColourJitter(setup.info.in_chans, strength=strength, probability=often)
        self.statistics = PoolStatistics(setup.teacher.targets, config.bn_momentum)
        self.alignment: FeatureAlignment | None = None
        if config.align_weight:
            bounds = {"smoothing": config.smoothing, "least": config.least_singular_value}
            self.alignment = FeatureAlignment(setup.teacher.classifier, **bounds)
        self.inner = Inner(config, self.step, parameters_of(self.generator, config.generator_lr))
        self.register_buffer("label_embeddings", setup.label_embeddings, persistent=False)
        self.register_buffer("class_order", torch.arange(setup.info.num_classes), persistent=False)
        self.register_buffer("labels", torch.zeros(config.synthesis_batch_size, dtype=torch.int64), persistent=False)

    def check_run(self) -> None:
        who = "" if self.config.nodes else f" of {self.teacher.info.name}, chosen from its layers (--method.nodes)"
        note(f"nodes{who}: {described(self.nodes)}")

    def rounds(self, epoch: int) -> int:
        return self.config.warmup_rounds if epoch < self.config.warmup_epochs else self.config.rounds

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        """NAYER's order: new noisy layers in each round, steps of a fresh Adam, the images of the lowest loss."""
        config, adversarial = self.config, epoch >= self.config.warmup_epochs
        for index in range(self.rounds(epoch)):
            if index == 0 and self.is_reborn(epoch):
                self.generator.reset_parameters()
            self.generator.noise.reset_parameters()
            self.labels.copy_(epoch_labels(len(self.labels), self.class_order, index))
            trains = adversarial and config.student_mode == "released" and index > 0
            images = self.inner.run(config.synthesis_steps, adversarial=adversarial, student_trains=trains)
            self.statistics.update()
            yield SynthBatch(images, self.labels)

    def step(self, *, adversarial: bool, student_trains: bool = False) -> tuple[Tensor, LossTerms]:
        """Images, and the terms of the generator's loss on what both networks see of them."""
        images, made = self.generator(self.label_embeddings[self.labels])
        view, partners, shares = cutmix(self.augment(self.jitter(images)), self.config.cutmix_probability)
        teacher = self.teacher(view, maps=self.maps)
        terms = {
            "ce": mixture_ce(teacher.logits, self.labels, self.labels[partners], shares),
            "bn": self.statistics.loss(teacher.moments),
            "inversion": inversion(made, self.wanted(teacher)),
        }
        if adversarial:
            terms["adv"] = disagreement(self._students[student_trains](view), teacher.logits)
            if self.alignment is not None:
                terms["align"] = self.alignment(teacher.pooled(), self.labels)
        return images, terms

    def wanted(self, teacher: NetOutput) -> list[Tensor]:
        """F_k: the inputs of the nodes, with the running statistics in place of this batch's and the pool's; after
        `statistics.loss`, which has taken this batch's.
        """
        found = self.statistics
        means, variances = (flat.split(found.sizes) for flat in found.batch.lerp(found.pool, found.weight))
        return [
            restored(teacher.maps[name], (means[node.place], variances[node.place]), found.targets[node.place])
            for name, node in zip(self.maps, self.nodes, strict=True)
        ]

    def is_reborn(self, epoch: int) -> bool:
        """Whether an epoch begins with a whole new generator."""
        life = self.config.generator_life
        return bool(life) and (epoch % life == 0 or (epoch - self.config.warmup_epochs) % life == 0)
