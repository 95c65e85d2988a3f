"""HiDFD's hybrid data: generated images once and each collected one N times, and the counts that go with them.

Tang et al., arXiv:2412.13525, "Student Distillation". A collected image lies in the pool once, with how often it comes
in a pass over it: N copies would be the same data in N times the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dfkd_fast.messages.notes import note
from dfkd_fast.methods.base import SynthBatch
from dfkd_fast.methods.hidfd.gan import TURNS, TeacherGuidedGan
from dfkd_fast.pool.pool import REPEATS

if TYPE_CHECKING:
    from dfkd_fast.methods.hidfd.method import HidfdConfig


class HybridData:
    """What fills the pool when the GAN has learnt: |D_s| generated images, then the |D_c| collected ones."""

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
                images, labels = self._gan.generate()
                made = repeated(images[:left], labels[:left], 1)
            yield made
        for number in self._collected:
            with self._gan.inference():
                made = repeated(*self._gan.collected_batch(number), inflation(self.config, self._gan.count))
            yield made

    def preview(self, images: Tensor) -> SynthBatch:
        """What a round of the GAN shows, which `batches` overwrite: no more than the pool holds."""
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
    one pass if it was one. Nothing follows counts that the config's check refuses.
    """
    if min(each for sizes in (config, before) for each in (sizes.batch_size, sizes.synthesis_batch_size)) < 1:
        return {}
    collected = before.synthesis_steps // TURNS * before.synthesis_batch_size
    old, new = images_in_a_pass(before, collected), images_in_a_pass(config, round(collected * share))
    found = {}
    if share != 1 or config.synthesis_batch_size != before.synthesis_batch_size:
        batches = before.synthesis_steps / TURNS * share * before.synthesis_batch_size / config.synthesis_batch_size
        found["synthesis_steps"] = max(1, round(batches)) * TURNS
    changed = new != old or config.batch_size != before.batch_size
    if changed and abs(before.student_steps * before.batch_size / old - 1) < 0.01:
        passes = before.student_steps * before.batch_size / old
        found["student_steps"] = max(1, round(passes * new / config.batch_size))
    return found


def check_passes(config: HidfdConfig, collected: int) -> None:
    """Say where an epoch of the GAN is not one pass over so many collected images, to 1 %."""
    seen = config.synthesis_steps // TURNS * config.synthesis_batch_size
    if abs(seen / collected - 1) > 0.01 and abs(seen - collected) >= config.synthesis_batch_size:
        steps = max(1, round(collected / config.synthesis_batch_size)) * TURNS
        note(
            f"--synthesis-steps {config.synthesis_steps}: an epoch of the GAN sees {seen} images, "
            f"{seen / collected:.2g} passes over the {collected} collected ones; --synthesis-steps {steps} is one pass"
        )
