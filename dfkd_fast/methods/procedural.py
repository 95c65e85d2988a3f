"""Procedural: knowledge distillation on pictures that nobody has photographed and no network has made.

Frank, Davis. What Makes a Good Dataset for Knowledge Distillation? CVPR 2025. arXiv:2411.12817, and their Data-Free
Knowledge Distillation Using Adversarially Perturbed OpenGL Shader Images, arXiv:2310.13782. No code was at hand, and of
the papers their abstracts and reviews: what a good source is (votes of the teacher that are equal for all classes, much
variety, pictures near the boundaries between classes) is theirs, the generators and most values are ours.

Deviations: pictures are drawn, not collected OpenGL shaders; RandAugment changes a picture before it enters the pool,
once, and not each view of it. docs/methods/procedural.md has the rest.
Distributed: pictures per rank, pool sharded by rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dfkd_fast.config.setting import setting
from dfkd_fast.errors import UserError, unknown
from dfkd_fast.losses.generator import label_ce
from dfkd_fast.methods.base import Inner, LossTerms, Method, MethodConfig, Needs, PoolPlan, Setup, SynthBatch
from dfkd_fast.procedural.pictures import FAMILIES, draw_pictures
from dfkd_fast.procedural.randaugment import check_channels, rand_augment
from dfkd_fast.procedural.selection import balanced_choice, rarest_classes, vote_counts
from dfkd_fast.rng import derive_seed


@dataclass(frozen=True, kw_only=True)
class ProceduralConfig(MethodConfig):
    """The recipe; of its values T = 20 and 4 operations of RandAugment are the paper's, the others ours."""

    epochs: int = 201
    """epochs in all: one that draws the pictures, then the student's 200"""
    warmup_epochs: int = 1
    """first epochs, which only fill the pool"""
    synthesis_batch_size: int = 500
    """pictures that one round leaves to the pool"""
    synthesis_steps: int = 8
    """steps of a picture towards another class"""
    select_iterate: Literal["last"] = "last"
    """without effect: of a walk the pictures before and after the crossing are kept"""
    batch_size: int = 128
    """images in one student step"""
    student_lr: float = 0.1
    """the student's peak learning rate"""
    warmup_rounds: int = setting(100, at_least=0)
    """rounds in a warm-up epoch"""
    rounds: int = setting(0, at_least=0)
    """rounds in an epoch after it; 0: all pictures are drawn in the warm-up, as a data set is"""
    families: tuple[str, ...] = tuple(FAMILIES)
    """kinds of pictures: leaves, noise, waves, shaders, flames, julia"""
    grey: bool = False
    """pictures without colours, for a teacher of grey images"""
    candidates: int = setting(4, at_least=1, at_most=1000)
    """pictures drawn for each one that is kept"""
    boundary_pairs: int = setting(64, at_least=0, shared_out=True)
    """pictures of a round that walk to another class and are kept twice, before the crossing and after it; at most half
    of a round's pictures
    """
    boundary_step: float = setting(0.02, above=0, synthesis_rate=True)
    """length of a step for each pixel of [0, 1], Adam's learning rate"""
    randaugment_operations: int = setting(4, at_least=0, at_most=100)
    """operations of RandAugment on each picture (paper: N = 4)"""
    randaugment_magnitude: int = setting(9, at_least=0, at_most=30)
    """how strong they are, from 0 to 30"""
    ce_weight: float = 1.0
    """weight of the label term that leads a picture to another class"""

    def check(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                raise unknown("--method.families", name, FAMILIES)
        if not self.families:
            raise UserError(f"--method.families: none given; choose from {', '.join(FAMILIES)}")


class Procedural(Method):
    needs = Needs(batchnorm=False)
    paper = "arXiv:2411.12817"

    config: ProceduralConfig
    counts: Tensor
    pixels: Tensor
    labels: Tensor
    before: Tensor
    after: Tensor
    crossed: Tensor

    def __init__(self, config: ProceduralConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        size, info = config.synthesis_batch_size, setup.info
        if config.randaugment_operations and not config.grey:
            check_channels(info.in_chans, f"--method.randaugment-operations {config.randaugment_operations}")
        self.shape = info.shape
        self.pairs = min(config.boundary_pairs, size // 2)
        self.register_buffer("counts", torch.zeros(info.num_classes, dtype=torch.int64))  # votes of what was made
        for name in ("pixels", "before", "after"):
            self.register_buffer(name, torch.zeros(self.pairs, *self.shape), persistent=False)
        self.register_buffer("labels", torch.zeros(self.pairs, dtype=torch.int64), persistent=False)
        self.register_buffer("crossed", torch.zeros(self.pairs, dtype=torch.bool), persistent=False)
        walk = replace(config, synthesis_batch_size=2 * self.pairs)
        self.inner = Inner(walk, self.step, self.parameter_groups, after=self.clip)

    def rounds(self, epoch: int) -> int:
        return self.config.warmup_rounds if epoch < self.config.warmup_epochs else self.config.rounds

    def pools(self) -> tuple[PoolPlan, ...]:
        (plan,) = super().pools()
        return (plan._replace(labels_are_votes=True),)

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        """Draw, let the teacher vote, keep the rarest classes, walk some pictures to what is rarer still."""
        config = self.config
        plain = config.synthesis_batch_size - 2 * self.pairs
        for index in range(self.rounds(epoch)):
            seed = derive_seed(torch.initial_seed(), "pictures", index)
            candidates = self.draw(config.candidates * (plain + self.pairs), seed)
            votes, runners_up = self.votes(candidates)
            chosen = balanced_choice(votes, self.counts, plain + self.pairs)
            images, votes, runners_up = candidates[chosen], votes[chosen], runners_up[chosen]
            self.counts += vote_counts(votes[:plain], self.info.num_classes)
            if self.pairs:
                walked = self.walked(images[plain:], votes[plain:], runners_up[plain:])
                images = torch.cat([images[:plain], walked])
                votes = torch.cat([votes[:plain], found := self.votes(walked)[0]])
                self.counts += vote_counts(found, self.info.num_classes)
            yield SynthBatch(images, votes)

    def draw(self, count: int, seed: int) -> Tensor:
        """Pictures (count, C, H, W) in [0, 1]."""
        config, generator = self.config, torch.Generator(self.counts.device).manual_seed(seed)
        shape = (1, *self.shape[1:]) if config.grey else self.shape
        drawn = draw_pictures(count, shape, generator=generator, families=config.families)
        operations, magnitude = config.randaugment_operations, config.randaugment_magnitude
        changed = rand_augment(drawn, operations=operations, magnitude=magnitude, seed=seed)
        return changed.to(self.pixels.dtype).expand(-1, *self.shape)

    def votes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's class (N,) for each image, and its second."""
        with self.inner.inference():
            parts = images.split(self.config.synthesis_batch_size)
            logits = torch.cat([self.teacher(self.augment.normalize(part), moments=False).logits for part in parts])
        first, second = logits.topk(2, dim=1).indices.unbind(1)
        return first, second

    def walked(self, images: Tensor, votes: Tensor, runners_up: Tensor) -> Tensor:
        """Images (Q, C, H, W) -> (2 Q, C, H, W): each before it crosses into the class that is rarest, or its own
        second, and after.
        """
        with torch.no_grad():
            targets = rarest_classes(self.counts, self.pairs)
            self.labels.copy_(torch.where(targets == votes, runners_up, targets))
            self.pixels.copy_(images)
            self.crossed.zero_()
        pairs: Tensor = self.inner.run(self.config.synthesis_steps)
        return pairs

    def step(self) -> tuple[Tensor, LossTerms]:
        """The pairs so far, and the label term of the other class."""
        logits = self.teacher(self.augment.normalize(self.pixels), moments=False).logits
        with torch.no_grad():
            open_end = ~self.crossed[:, None, None, None]
            self.after.copy_(torch.where(open_end, self.pixels, self.after))
            self.crossed |= logits.argmax(1) == self.labels
            open_end = ~self.crossed[:, None, None, None]
            self.before.copy_(torch.where(open_end, self.pixels, self.before))
        return torch.cat([self.before, self.after]), {"ce": label_ce(logits, self.labels)}

    @torch.no_grad()
    def clip(self) -> None:
        """Keep the pixels between black and white."""
        self.pixels.clamp_(0, 1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.pixels.requires_grad_()], "lr": self.config.boundary_step}]
