"""Hyper-parameters that every method has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from dfkd_fast.config.setting import setting
from dfkd_fast.methods.exchange import LossTerms

StudentOptimizer = Literal["sgd", "nesterov", "adamw", "muon"]


class Crops(NamedTuple):
    """Random crops and flips of a batch."""

    scale: float
    """smallest share of the area in a random resized crop; 1: padded crops instead"""
    pad: int
    """zero padding of those in pixels; 0 without them"""
    flip: bool


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The recipe: everything that a paper's table of hyper-parameters lists. Each method's defaults are its released
    values.
    """

    epochs: int = setting(220, at_least=1, at_most=10**6)
    """epochs in all, warm-up included"""
    warmup_epochs: int = setting(20, at_least=0, at_most=10**6)
    """first epochs, which only fill the pool"""
    synthesis_batch_size: int = setting(256, at_least=2)
    """images made in one synthesis round (global)"""
    synthesis_steps: int = setting(10, at_least=1)
    """generator steps in one round"""
    select_iterate: Literal["best", "last"] = setting("best", hashed_as="keep")
    """what a round leaves to the pool: what the step of the lowest loss made, or the last step"""
    patience: int = setting(0, at_least=0, formerly=0)
    """end a round after so many steps without a better image, which means of lower loss; asked for after every tenth
    step, or every N-th of fewer, so that the device goes on; 0: all steps are taken. Changes results
    """
    batch_size: int = setting(256, at_least=1)
    """images in one student step (global)"""
    student_steps: int = setting(400, at_least=1)
    """student steps in one epoch"""
    student_optimizer: StudentOptimizer = "sgd"
    """what trains the student; nesterov: SGD with Nesterov's momentum; muon: orthogonalised updates of matrices and
    filters, of the size that AdamW's have, and AdamW for the rest, so that AdamW's rates (about 1e-3) are right
    """
    student_lr: float = setting(0.2, at_least=0)
    """the student's peak learning rate"""
    student_lr_min: float = setting(2e-4, at_least=0)
    """learning rate at the end of the cosine (paper: eta_min)"""
    student_ramp_epochs: int = setting(0, at_least=0)
    """first distilled epochs, over which the learning rate rises linearly to its peak; the cosine follows"""
    student_ramp_share: float = setting(0.0, at_least=0, formerly=0.0)
    """the same as a share of the distilled epochs, which follows `epochs` (MUSE's growing rate: 0.1)"""
    student_lr_steps: tuple[int, ...] = setting((), at_least=1, formerly=())
    """distilled epochs after which the learning rate is divided by 10; with any of them there is no cosine"""
    student_schedule: Literal["epochs", "one-cycle"] = setting("epochs", formerly="epochs")
    """epochs: a rate for each epoch, by the settings above; one-cycle: one for each step, linear from a 25th of
    `student_lr` up to it over the ramp (without one the first quarter), then along a cosine to `student_lr_min`
    """
    student_momentum: float = setting(0.9, at_least=0, at_most=1)
    """momentum of SGD and Muon, or AdamW's first beta"""
    student_weight_decay: float = setting(1e-4, at_least=0)
    """weight decay of the student's optimiser"""
    student_mix: Literal["none", "cutmix", "mixup", "both"] = setting("none", formerly="none")
    """mix the images of a student batch with each other; the teacher answers the mixture"""
    student_mix_alpha: float = setting(1.0, above=0, formerly=1.0)
    """both images' shares in a mixture are drawn from Beta(alpha, alpha): 1 uniformly, less towards one of them"""
    kd_temperature: float = setting(20.0, above=0)
    """temperature of the distillation loss (paper: T)"""
    kd_weight: float = 1.0
    """weight of the distillation loss"""
    crop_padding: int = setting(4, at_least=0)
    """zero padding of the random crop in pixels, for synthesis and for the student"""
    crop_scale: float = setting(1.0, above=0, at_most=1)
    """smallest share of an image's area in a random resized crop, which below 1 replaces the padded crop"""
    student_crop_scale: float | None = setting(None, above=0, at_most=1, formerly=None)
    """the same for the student alone; without it the student has what synthesis has"""
    flip: bool = True
    """random horizontal flips, for synthesis and for the student; off for images with a side (digits)"""
    student_flip: Literal["same", "on", "off"] = setting("same", formerly="same")
    """the same for the student alone; same: as in synthesis"""

    def check(self) -> None:
        """Raise UserError for settings that do not go with each other; each by itself is within its limits."""

    def following(self, before: Self, share: float) -> dict[str, int]:
        """Counts that go with settings which a user has changed, for those that the user leaves as they are: field and
        new value. `before` is the recipe that was changed, `share` the new share of the collected images over its own.
        """
        return {}

    @property
    def steps_per_epoch(self) -> int:
        """Student steps in an epoch, however they are given."""
        return self.student_steps

    @property
    def ramp_epochs(self) -> int:
        """First distilled epochs of a growing learning rate, however they are given."""
        return self.student_ramp_epochs or round(self.student_ramp_share * (self.epochs - self.warmup_epochs))

    @property
    def student_crops(self) -> Crops:
        """What student batches are augmented by."""
        scale = self.crop_scale if self.student_crop_scale is None else self.student_crop_scale
        flip = {"on": True, "off": False}.get(self.student_flip, self.flip)
        return Crops(scale, self.crop_padding if scale == 1 else 0, flip)


def weighted_sum(terms: LossTerms, config: MethodConfig) -> Tensor:
    """The loss: the sum over terms `x` of `config.x_weight` times the term. A term without a weight is an error."""
    missing = [name for name in terms if not hasattr(config, f"{name}_weight")]
    if missing:
        raise AttributeError(f"{type(config).__name__} has no {', '.join(f'{name}_weight' for name in missing)}")
    return torch.stack([getattr(config, f"{name}_weight") * term for name, term in terms.items()]).sum()


def rounds_in_epoch(epoch: int, *, epochs: int, capacity: int, batch_size: int) -> int:
    """Synthesis rounds of `batch_size` in an epoch, so that all epochs together just fill `capacity`.

    Spread evenly, from the first epoch on: a student needs images however small the budget. How the paper enforces its
    limit is not stated. With the policy "cap" the pool leaves out what the last round has too much.
    """
    rounds = -(-capacity // batch_size)
    return -(-(epoch + 1) * rounds // epochs) + (-epoch * rounds // epochs)
