"""HiDFD's hybrid data: generated images once and each collected one N times, and the counts that go with them.

Tang et al., arXiv:2412.13525, "Student Distillation". A collected image lies in the pool once, with how often it comes
in a pass over it: N copies would be the same data in N times the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dfkd_fast.methods.base import SynthBatch
from dfkd_fast.methods.hidfd_gan import TeacherGuidedGan
from dfkd_fast.pool.pool import REPEATS

if TYPE_CHECKING:
    from dfkd_fast.methods.hidfd import HidfdConfig

TURNS = 2


class HybridData:
    """What fills the pool when the GAN has learnt: |D_s| generated images, then the |D_c| collected ones."""

    def __init__(self, config: HidfdConfig, gan: TeacherGuidedGan) -> None:
        self.config, self._gan = config, gan
        size = config.synthesis_batch_size
        self._generated = -(-config.synthetic_images // size)
        self.batches = self._generated - (-gan.count // size)
        self.images = config.synthetic_images + gan.count

    def batch(self, index: int) -> SynthBatch:
        """Batch `index` (0-based); the last of either kind may be smaller than the others."""
        if index < self._generated:
            left = self.config.synthetic_images - index * self.config.synthesis_batch_size
            images, labels = self._gan.generate()
            return repeated(images[:left], labels[:left], 1)
        return repeated(*self._gan.collected_batch(index - self._generated), inflation(self.config, self._gan.count))

    def preview(self, images: Tensor) -> SynthBatch:
        """What a round of the GAN shows, which `batch` overwrites: no more than the pool holds."""
        return repeated(images[: self.images], self._gan.labels[: self.images], 1)


def repeated(images: Tensor, labels: Tensor, times: int) -> SynthBatch:
    """Images that come `times` times in a pass over the pool."""
    return SynthBatch(images, labels, {REPEATS: torch.full((len(labels),), times)})


def inflation(config: HidfdConfig, collected: int) -> int:
    """N: each of so many collected images counts as N."""
    return config.inflation or max(1, config.synthetic_images // max(1, collected))


def images_in_a_pass(config: HidfdConfig, collected: int) -> int:
    """|D_s| + N |D_c|, of which the student sees each once."""
    return config.synthetic_images + inflation(config, collected) * collected


def following(config: HidfdConfig, before: HidfdConfig, share: float) -> dict[str, int]:
    """`HidfdConfig.following`: the GAN's epoch goes over the collected images as often as it did, and the student's is
    one pass if it was one.
    """
    collected = before.synthesis_steps // TURNS * before.synthesis_batch_size
    old, new = images_in_a_pass(before, collected), images_in_a_pass(config, round(collected * share))
    found = {}
    if share != 1:
        found["synthesis_steps"] = max(1, round(before.synthesis_steps / TURNS * share)) * TURNS
    if new != old and abs(before.student_steps * before.batch_size / old - 1) < 0.01:
        found["student_steps"] = max(1, round(before.student_steps * new / old))
    return found
