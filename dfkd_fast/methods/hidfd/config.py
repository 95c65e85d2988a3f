"""The recipe of HiDFD (arXiv:2412.13525), and the counts that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from dfkd_fast.config.setting import setting
from dfkd_fast.methods.recipe import MethodConfig

TURNS = 2
"""steps that make one iteration of the GAN: the discriminator's, then the generator's"""


@dataclass(frozen=True, kw_only=True)
class HidfdConfig(MethodConfig):
    """The recipe of HiDFD; defaults are the paper's for CIFAR with a tenth of the images collected."""

    epochs: int = 740
    """epochs in all: those of the GAN, then the student's 240"""
    warmup_epochs: int = 500
    """epochs of the GAN; then the pool is filled"""
    synthesis_batch_size: int = 100
    """collected images in one step of the GAN, and as many generated ones"""
    synthesis_steps: int = 100
    """steps of discriminator and generator, in turn, in one epoch: twice the collected images over the batch"""
    select_iterate: Literal["last"] = "last"
    """what the grids show while the GAN learns, the last step's images; the student never sees them"""
    synthetic_images: int = setting(50_000, at_least=1, shared_out=True)
    """images that the trained generator makes for the student (paper: |D_s|)"""
    inflation: int | None = setting(None, at_least=1)
    """how often a collected image comes in one pass of the student (paper: N); without it |D_s| / |D_c|; 1: once"""
    batch_size: int = 64
    """images in one student step"""
    student_steps: int = 1562
    """student steps in one epoch: one pass over |D_s| + N |D_c| images"""
    student_lr: float = 0.05
    """the student's first learning rate (release: 0.01 for mobile networks)"""
    student_lr_steps: tuple[int, ...] = (150, 180, 210)
    """distilled epochs after which it is divided by 10"""
    student_weight_decay: float = 5e-4
    """weight decay of the student's SGD"""
    crop_scale: float = 0.08
    """smallest share of an image's area in the student's random resized crop; the GAN sees whole images"""
    generator_lr: float = setting(1e-4, at_least=0, synthesis_rate=True)
    """Adam's learning rate for the generator (release: 2e-4)"""
    discriminator_lr: float = setting(4e-4, at_least=0, synthesis_rate=True)
    """Adam's learning rate for the discriminator (release: 2e-4)"""
    latent_dim: int = setting(128, at_least=1)
    """size of a latent (paper: z)"""
    generator_width: int = setting(64, at_least=1)
    """unit of both networks' channels: blocks have 4 times as many at 32 pixels"""
    released: bool = False
    """the released code: hinge losses, features without gradient or gate, uniform class weights, images in [-1, 1] for
    the GAN's teacher, synthetic images stretched to [0, 1]
    """
    paired_labels: bool = True
    """the discriminator's fakes have the labels of its real images (Eq. 8 has one y); off, or released: drawn anew"""
    blend_threshold: float = setting(0.7, at_least=0, at_most=1)
    """features are blended in a step whose uniform draw is above it (paper: q)"""
    frequency_momentum: float = setting(0.5, at_least=0, at_most=1)
    """share of a batch in the running class frequencies (paper: gamma)"""
    reg_mean_one: bool = setting(False, formerly=False)
    """class weights in L_reg have mean 1, as the authors' regulariser scales them; off: Eq. 12, mean of K or more"""
    alignment: Literal["simkd", "pooled", "kd"] = "simkd"
    """simkd: maps through a projector (release); pooled: Eq. 14; both share the teacher's classifier; kd: the logits"""
    kd_temperature: float = 4.0
    """temperature of the ablation's distillation loss"""
    d_gan_weight: float = 1.0
    """weight of the discriminator's -L_d"""
    d_adc_weight: float = 1.0
    """weight of its classes"""
    blend_weight: float = 0.1
    """weight of L_blend (paper: lambda_d); 0 for the ablation"""
    trans_weight: float = 0.1
    """weight of L_trans (paper: lambda_d); 0 for the ablation"""
    g_gan_weight: float = 1.0
    """weight of the generator's L_g"""
    g_adc_weight: float = 1.0
    """weight of its classes"""
    reg_weight: float = 0.1
    """weight of L_reg (paper: lambda_g); 0 for the ablation: no category frequency smoothing"""
    align_weight: float = 1.0
    """weight of L_align"""

    def following(self, before: Self, share: float) -> dict[str, int]:
        return following(self, before, share)


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
