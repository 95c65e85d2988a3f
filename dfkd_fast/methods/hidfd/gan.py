"""HiDFD's first module: a GAN on few real images, guided by the teacher (Tang et al., arXiv:2412.13525, Eqs. 1-13).

Discriminator and generator step in turn. The generator sees the discriminator through a frozen alias that shares its
weights, so that its steps cost no gradients for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_fast.augment import Augment
from dfkd_fast.files.image_rows import ImageRows
from dfkd_fast.losses import gan
from dfkd_fast.methods.base import Inner, LossTerms, Setup, parameters_of
from dfkd_fast.methods.hidfd.biggan import BigDiscriminator, BigGenerator
from dfkd_fast.methods.hidfd.class_frequency import ClassFrequency
from dfkd_fast.methods.hidfd.config import TURNS, HidfdConfig
from dfkd_fast.models.teacher import frozen_alias, unregistered


class TeacherGuidedGan(nn.Module):
    """Both networks, the collected images, and the terms of either's step."""

    pixels: Tensor
    pixel_labels: Tensor
    order: Tensor
    cursor: Tensor
    batch: Tensor | None
    latents: Tensor
    labels: Tensor

    def __init__(self, config: HidfdConfig, setup: Setup) -> None:
        super().__init__()
        assert setup.collected is not None, "HiDFD needs collected images"
        info, self.teacher, self.config = setup.info, setup.teacher, config
        batch_size, (pixels, labels) = config.synthesis_batch_size, setup.collected
        classes, size, width = info.num_classes, info.image_size, config.generator_width
        self.is_guided = config.blend_weight > 0 or config.trans_weight > 0
        guided = setup.teacher.classifier.in_features if self.is_guided else 0
        self.generator = BigGenerator(config.latent_dim, classes, size, width=width, in_chans=info.in_chans)
        self.discriminator = BigDiscriminator(classes, size, width=width, feature_dim=guided, in_chans=info.in_chans)
        self.count = len(labels)
        momentum, mean_one = config.frequency_momentum, config.reg_mean_one
        self.frequency = ClassFrequency(info.num_classes, batch_size, momentum=momentum, mean_one=mean_one)
        self.augment = Augment(info, pad=0, flip=False)
        self._alias: tuple[nn.Module, ...] = unregistered()
        self._rows = pixels if isinstance(pixels, ImageRows) else None
        self._places: Tensor | None = None
        for name, value in {
            "pixels": None if isinstance(pixels, ImageRows) else pixels,
            "batch": torch.zeros(batch_size, *pixels.shape[1:], dtype=torch.uint8) if self._rows else None,
            "pixel_labels": labels.clone(),
            "order": torch.arange(len(labels), device=labels.device),
            "cursor": torch.zeros((), dtype=torch.int64),
            "latents": torch.zeros(batch_size, config.latent_dim),
            "labels": torch.zeros(batch_size, dtype=torch.int64),
        }.items():
            self.register_buffer(name, value, persistent=False)

        turn = partial(Inner, config, betas=(0.0, 0.999), shared=True)
        self.judging = turn(self.discriminator_step, lasting=parameters_of(self.discriminator, config.discriminator_lr))
        self.making = turn(self.generator_step, lasting=parameters_of(self.generator, config.generator_lr))

    def learn(self, steps: int) -> Tensor:
        """So many steps, of discriminator and generator in turn, and the images of the last."""
        self.shuffle()
        for step in range(steps):
            if step % TURNS == 0:
                self.read_batch(step // TURNS)
                images = self.judging.run(1)
            else:
                images = self.making.run(1)
        return images

    def inference(self) -> AbstractContextManager[Any]:
        """Without gradients, in the precision of the steps."""
        return self.making.inference()

    def shuffle(self) -> None:
        """Put the collected images in a new order."""
        if not self._alias:  # only now do the weights lie where they stay
            self._alias = unregistered(frozen_alias(self.discriminator))
        torch.randperm(len(self.order), out=self.order)
        self.cursor.zero_()
        if self._rows is not None:
            self._places = self.order.cpu()

    def read_batch(self, number: int) -> None:
        """Before the discriminator's step `number` (0-based) of an epoch: read its images, where they lie in a file."""
        if self._rows is not None and self._places is not None:
            first, size = number * len(self.labels), len(self.labels)
            self._fetch(self._places[torch.arange(first, first + size) % self.count].tolist())

    def _fetch(self, rows: Sequence[int]) -> None:
        """Put images of the file where a step finds them; their place stays, as captured steps want it."""
        assert self._rows is not None
        assert self.batch is not None
        self.batch[: len(rows)].copy_(self._rows.read(rows))

    def discriminator_step(self) -> tuple[Tensor, LossTerms]:
        """Generated images (B, C, H, W), and -L_d, the classes, L_blend and L_trans of Eq. 13."""
        count = len(self.labels)
        slots = self.order[(self.cursor + torch.arange(count, device=self.cursor.device)) % len(self.order)]
        self.cursor.add_(count)
        real, real_labels = self.collected(slots)
        self.draw(real_labels if self.config.paired_labels and not self.config.released else None)
        with torch.no_grad():
            fake = self.generator(self.latents, self.labels)
        both = torch.cat([real, fake])
        judged = self.discriminator(both)
        (real_score, fake_score), (real_class, fake_class) = judged.scores.chunk(2), judged.classes.chunk(2)
        terms = {
            "d_gan": gan.discriminator_gan(real_score, fake_score, hinge=self.config.released),
            "d_adc": gan.discriminator_classes(real_class, real_labels, fake_class, self.labels),
        }
        if judged.features is not None:
            terms |= self._integration(both, judged.features)
        return fake, terms

    def _integration(self, both: Tensor, features: Tensor) -> LossTerms:
        """Eqs. 8 and 9."""
        with torch.no_grad():
            real_target, fake_target = self.teacher(self.view(both), moments=False).pooled().chunk(2)
        real, fake = (features.detach() if self.config.released else features).chunk(2)
        terms = {}
        if self.config.blend_weight:
            blend = gan.feature_distance(real_target, fake) + gan.feature_distance(fake_target, real)
            is_blended = torch.rand((), device=blend.device) > (
                0.0 if self.config.released else self.config.blend_threshold
            )
            terms["blend"] = blend * is_blended
        if self.config.trans_weight:
            terms["trans"] = gan.feature_distance(real_target, real) + gan.feature_distance(fake_target, fake)
        return terms

    def generator_step(self) -> tuple[Tensor, LossTerms]:
        """Generated images (B, C, H, W), and L_g, the classes and L_reg of Eq. 13."""
        self.draw()
        images = self.generator(self.latents, self.labels)
        judged = self._alias[0](images)
        terms = {
            "g_gan": gan.generator_gan(judged.scores, hinge=self.config.released),
            "g_adc": gan.generator_classes(judged.classes, self.labels),
        }
        if self.config.reg_weight:
            logits = self.teacher(self.view(images), moments=False).logits
            weights = torch.ones_like(self.frequency.counts) if self.config.released else self.frequency.weights()
            terms["reg"] = gan.smoothed_entropy(logits, weights)
            self.frequency.update(logits)  # for the next step, as Eq. 10 has it
        return images, terms

    def draw(self, labels: Tensor | None = None) -> None:
        """New latents, and these labels, or new ones drawn uniformly; out of place, as torch.compile wants it."""
        if labels is None:
            labels = torch.randint(self.frequency.counts.numel(), self.labels.shape, device=self.labels.device)
        self.labels.copy_(labels)
        self.latents.copy_(torch.randn_like(self.latents))

    def view(self, images: Tensor) -> Tensor:
        """What the teacher is shown: images normalised for it; the release shows it what the GAN works on."""
        return 2 * images - 1 if self.config.released else self.augment.normalize(images)

    def collected(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Real images (B, C, H, W) in [0, 1] and their labels; of a file those that were read last."""
        pixels = self.batch[: len(slots)] if self.batch is not None else self.pixels[slots]
        return pixels.permute(0, 3, 1, 2).to(self.latents.dtype) / 255, self.pixel_labels[slots]

    def collected_batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Batch `number` (0-based) of the collected images in their order; the last may be smaller."""
        first = number * len(self.labels)
        end = min(first + len(self.labels), self.count)
        if self._rows is not None:
            self._fetch(range(first, end))
        return self.collected(torch.arange(first, end, device=self.labels.device))
