"""Base class of the stepwise methods: one generator that lives as long as the run, and no pool.

After each few of its steps the student learns from images that the generator makes on the spot, each of which is seen
once. Values are those of CMI's authors (Fang et al., IJCAI 2021, arXiv:2105.08584), whose re-implementations of DAFL,
ZSKT and DFQ most published tables quote; docs/methods/stepwise.md has them with their source.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dfkd_fast.augment import Augment
from dfkd_fast.config.setting import setting
from dfkd_fast.generators.decoder import Decoder, Output, make_large_decoder, with_output
from dfkd_fast.losses.distillation import kd_kl
from dfkd_fast.methods.base import Inner, LossTerms, Method, MethodConfig, PoolPlan, Setup, SynthBatch
from dfkd_fast.methods.inner import parameters_of
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.optim import cosine
from dfkd_fast.pool.pool import PoolBatch


@dataclass(frozen=True, kw_only=True)
class StepwiseConfig(MethodConfig):
    """What the stepwise methods have in common; defaults are the benchmark's."""

    epochs: int = 200
    """epochs in all"""
    warmup_epochs: int = 0
    """first epochs, in which only the generator learns"""
    synthesis_batch_size: int = 256
    """images in one generator step (global)"""
    synthesis_steps: int = 1
    """generator steps in one round"""
    student_steps: int = 400
    """student steps in one epoch (release: ep_steps)"""
    student_steps_per_round: int = setting(5, at_least=1)
    """student steps after each round of generator steps (release: kd_steps)"""
    select_iterate: Literal["best", "last"] = "last"
    """of a round of several generator steps, whose images are shown in the image grids"""
    student_lr: float = 0.1
    """peak learning rate of the student's SGD"""
    student_lr_min: float = 0.0
    """learning rate at the end of the cosine"""
    kd_temperature: float = 1.0
    """temperature of the distillation loss (release: 1, whatever its T says)"""
    crop_padding: int = 0
    """zero padding of a random crop in pixels (release: no augmentation)"""
    flip: bool = False
    """random horizontal flips (release: no augmentation)"""
    generator_lr: float = setting(1e-3, at_least=0, synthesis_rate=True)
    """Adam's learning rate for the generator (release: lr_g)"""
    generator_lr_schedule: Literal["constant", "cosine"] = setting("constant", formerly="constant")
    """constant, or along a cosine to zero over all rounds (original of ZSKT)"""
    latent_dim: int = setting(256, at_least=1)
    """size of a latent (release: nz)"""
    generator_width: int = setting(256, at_least=1)
    """channels of the generator's stem; its blocks have a half and a quarter"""
    generator_output: Output = setting("sigmoid", formerly="sigmoid")
    """what images end in: pixels in [0, 1], or the data's mean and spread over a batch, without bounds (originals: ZSKT
    a BatchNorm, DAFL one behind a tanh)
    """
    sampling: Literal["eval", "train"] = "eval"
    """BatchNorm mode of the generator while it makes the student's images; eval: CMI's repository, train: Fast's"""


class StepwiseMethod(Method):
    """A method without a pool. A subclass says what its generator minimises, in `losses`.

    `decoder` makes the generator but for what its images end in. `betas` are its Adam's. `reads_moments`: `losses`
    reads the teacher's BN moments. `lr_scale(epoch, round)`, a factor on the generator's learning rate, stands in for
    `generator_lr_schedule`.
    """

    loop = "stepwise"

    config: StepwiseConfig
    labels: Tensor

    def __init__(
        self,
        config: StepwiseConfig,
        setup: Setup,
        *,
        decoder: Callable[..., Decoder] = make_large_decoder,
        betas: tuple[float, float] = (0.5, 0.999),
        reads_moments: bool = False,
        lr_scale: Callable[[int, int], float] | None = None,
    ) -> None:
        super().__init__(config, setup)
        self.reads_moments = reads_moments
        self.lr_scale = lr_scale or self._scheduled
        latents, width, info = config.latent_dim, config.generator_width, self.info
        made = decoder(latents, info.image_size, width=width, in_chans=info.in_chans)
        self.generator = with_output(made, config.generator_output, mean=info.mean, std=info.std)
        crops = config.student_crops
        self.student_augment = Augment(setup.info, pad=crops.pad, flip=crops.flip)
        groups = parameters_of(self.generator, config.generator_lr)
        self.inner = Inner(config, self.step, lasting=groups, betas=betas, shared=True)
        self.register_buffer("labels", torch.zeros(config.synthesis_batch_size, dtype=torch.int64), persistent=False)

    def rounds(self, epoch: int) -> int:
        return -(-self.config.student_steps // self.config.student_steps_per_round)

    def pools(self) -> tuple[PoolPlan, ...]:
        (plan,) = super().pools()
        return (plan._replace(capacity=0),)

    def synthesize(self, epoch: int) -> Iterator[SynthBatch]:
        config, adversarial = self.config, epoch >= self.config.warmup_epochs
        for index in range(self.rounds(epoch)):
            self.generator.train()
            scale = self.lr_scale(epoch, index)
            images = self.inner.run(config.synthesis_steps, lr_scale=scale, adversarial=adversarial)
            # only shown: the student's images are those of `student_view`
            yield SynthBatch(images.clamp(0, 1), self.labels)

    def _scheduled(self, epoch: int, index: int) -> float:
        if self.config.generator_lr_schedule == "constant":
            return 1.0
        return cosine((epoch + index / self.rounds(epoch)) / self.config.epochs)

    def step(self, *, adversarial: bool) -> tuple[Tensor, LossTerms]:
        """Images, and the loss terms on what the teacher sees in them, its prediction for `labels`."""
        images = self.generate(self.config.synthesis_batch_size)
        view = self.augment(images)
        teacher = self.teacher(view, moments=self.reads_moments)
        self.labels.copy_(teacher.logits.argmax(dim=1))
        return images, self.losses(view, teacher, adversarial=adversarial)

    def losses(self, view: Tensor, teacher: NetOutput, *, adversarial: bool) -> LossTerms:
        """The generator's loss terms on a view (B, C, H, W), which the teacher takes for `labels`; `adversarial`: the
        student has begun to learn.
        """
        raise NotImplementedError

    def generate(self, count: int) -> Tensor:
        """So many images (B, C, H, W), in [0, 1] if they end in a sigmoid, of new latents from N(0, 1)."""
        weight = next(self.generator.parameters())
        return self.generator(torch.randn(count, self.config.latent_dim, dtype=weight.dtype, device=weight.device))

    def student_variant(self) -> Hashable:
        trains = self.config.sampling == "train"
        if self.generator.training != trains:
            self.generator.train(trains)
        return None

    def student_view(self, batch: PoolBatch) -> Tensor:
        """New images for each step, `batch_size` of them, augmented and normalised."""
        return self.student_augment(self.generate(self.config.batch_size))

    def disagreement(self, view: Tensor, teacher: NetOutput) -> Tensor:
        """Minus KL(teacher || student), mean over the batch: the generator looks for images on which they differ.

        By the student itself. Two released codes hand the teacher over in its place, so that the term is always zero.
        """
        return -kd_kl(self.student(view), teacher.logits, 1.0)
