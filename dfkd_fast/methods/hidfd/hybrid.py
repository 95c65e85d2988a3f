"""HiDFD's hybrid data: generated images once and each collected one N times, and the counts that go with them.

Tang et al., arXiv:2412.13525, "Student Distillation". A collected image lies in the pool once, with how often it comes
in a pass over it: N copies would be the same data in N times the memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dfkd_fast.messages.notes import note
from dfkd_fast.methods.base import SynthBatch
from dfkd_fast.methods.hidfd.config import TURNS, HidfdConfig, inflation
from dfkd_fast.methods.hidfd.gan import TeacherGuidedGan
from dfkd_fast.pool.pool import REPEATS


class HybridData:
    """What fills the pool when the GAN has learned: |D_s| generated images, then the |D_c| collected ones."""

    def __init__(self, config: HidfdConfig, gan: TeacherGuidedGan) -> None:
        self.config, self._gan = config, gan
        size = config.synthesis_batch_size
        self.images = config.synthetic_images + gan.count
        self._generated, self._collected = range(0, config.synthetic_images, size), range(-(-gan.count // size))
        self.count = len(self._generated) + len(self._collected)

    def batches(self) -> Iterator[SynthBatch]:
        """All of them; the last of either kind may be smaller than the others."""
        for first in self._generated:
            left = self.config.synthetic_images - first
            with self._gan.inference():
                images, labels = self.generated()
                made = repeated(images[:left], labels[:left], 1)
            yield made
        for number in self._collected:
            with self._gan.inference():
                made = repeated(*self._gan.collected_batch(number), inflation(self.config, self._gan.count))
            yield made

    def generated(self) -> tuple[Tensor, Tensor]:
        """New images of classes drawn uniformly, by the generator in evaluation mode; as the release saves them, each
        image stretched to [0, 1].
        """
        gan = self._gan
        gan.draw()
        gan.generator.eval()
        images = gan.generator(gan.latents, gan.labels)
        gan.generator.train()
        return stretched(images) if self.config.released else images, gan.labels

    def preview(self, images: Tensor) -> SynthBatch:
        """What a round of the GAN shows, which `batches` overwrite: no more than the pool holds."""
        return repeated(images[: self.images], self._gan.labels[: self.images], 1)


def repeated(images: Tensor, labels: Tensor, times: int) -> SynthBatch:
    """Images that come `times` times in a pass over the pool."""
    return SynthBatch(images, labels, {REPEATS: torch.full((len(labels),), times)})


def check_passes(config: HidfdConfig, collected: int) -> None:
    """Say where an epoch of the GAN is not one pass over so many collected images, to 1 %."""
    seen = config.synthesis_steps // TURNS * config.synthesis_batch_size
    if abs(seen / collected - 1) > 0.01 and abs(seen - collected) >= config.synthesis_batch_size:
        steps = max(1, round(collected / config.synthesis_batch_size)) * TURNS
        note(
            f"--synthesis-steps {config.synthesis_steps}: an epoch of the GAN sees {seen} images, "
            f"{seen / collected:.2g} passes over the {collected} collected ones; --synthesis-steps {steps} is one pass"
        )


def stretched(images: Tensor) -> Tensor:
    """Each image's own least and greatest value become 0 and 1."""
    least, most = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - least) / (most - least).clamp_min(1e-5)
