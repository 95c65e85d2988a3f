"""The recipes of MUSE and MUSE-S (arXiv:2411.17046)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dfkd_fast.config.setting import setting
from dfkd_fast.errors import UserError
from dfkd_fast.methods.recipe import MethodConfig, StudentOptimizer
from dfkd_fast.models.vit import DECAY


@dataclass(frozen=True, kw_only=True)
class MuseSConfig(MethodConfig):
    """The recipe of MUSE-S; defaults are those for CIFAR in the paper's table 6."""

    epochs: int = 400
    """epochs in all, warm-up included (paper: E)"""
    warmup_epochs: int = 40
    """first epochs, which only fill the pool: a tenth of all"""
    image_sizes: tuple[int, ...] = setting((28,), at_least=1)
    """shorter sides of the images that are made, in pixels (paper: e)"""
    batch_shares: tuple[int, ...] = setting((1,), at_least=1)
    """how both kinds of batch are divided among the image sizes"""
    synthesis_batch_size: int = 260
    """images made in one round, of all sizes together"""
    synthesis_steps: int = 40
    """generator steps in one round (paper: g)"""
    rounds: int = setting(20, at_least=0)
    """most rounds in an epoch (paper: I)"""
    full_images: int = setting(50_000, at_least=1, shared_out=True)
    """images of full resolution that a data ratio of 100 % stands for"""
    data_ratio: float = setting(100.0, above=0)
    """budget of the pool in percent of `full_images`, in pixels; image sizes share it equally (paper: d_r)"""
    fifo: bool = False
    """`rounds` in every epoch, and the oldest images leave; off: just so many that they fill the pool, spread evenly"""
    batch_size: int = 260
    """images in one student step, of all sizes together"""
    student_steps: int = 200
    """student steps in an epoch at a data ratio of 100 %; in proportion at others (paper: S, 100 S / d_r)"""
    student_optimizer: StudentOptimizer = "adamw"
    """what trains the student"""
    student_lr: float = 1e-3
    """its peak learning rate (supplement; the main text has 1e-4)"""
    student_lr_min: float = 0.0
    """learning rate at the end of the cosine"""
    student_weight_decay: float = 0.01
    """not published; the value of SRe2L, whose recipe the paper compares with"""
    generator_life: int = setting(10, at_least=0)
    """a whole generator is re-initialised every so many epochs, as in NAYER's release; 0: never"""
    generator_lr: float = setting(4e-3, at_least=0, synthesis_rate=True)
    """Adam's learning rate for the whole generator"""
    noise_features: int = setting(1000, at_least=1)
    """output width of a noisy layer (NAYER: r)"""
    generator_width: int = setting(128, at_least=1)
    """channels of the generator's first blocks; the last have half"""
    bn_momentum: float = setting(0.9, at_least=0, at_most=1)
    """share of the pool in the BN statistics that are matched, as in NAYER's release"""
    cam_peak: float = setting(1.0, any_number=True)
    """what activation maps are raised to (paper: n of the target Full(n), i of G(i, j))"""
    cam_sigma: float | None = setting(None, above=0)
    """width in cells of the map of a Gaussian target; without it the target is constant (paper: j of G(i, j))"""
    inner_radius: float = setting(0.015, at_least=0)
    """distance from its class within which an embedding is left alone (paper: r_i)"""
    outer_radius: float = setting(0.03, at_least=0)
    """distance from its class up to which new images are driven (paper: r_o)"""
    rescale: Literal["auto", "always", "never"] = "auto"
    """bring embeddings to the scale that the radii are given for, CLIP's; auto: unless they are CLIP's or a file's"""
    aed_network: Literal["student", "teacher"] = setting("student", formerly="student")
    """whose embedding of new images L_aed looks at: the student's (Eq. 12), or the teacher's (the sentence above it),
    which needs class centres, --text class-centre
    """
    hinge_per_sample: bool = False
    """compare distance and radius for each image, not for the mean of the batch"""
    window_decay: float = setting(DECAY, at_least=0, formerly=0.1)
    """vision transformers: how fast the chance of a window of positions falls off (paper: lambda, without a value)"""
    ce_weight: float = 0.5
    """weight of the label term (paper: alpha_ce)"""
    bn_weight: float = 10.0
    """weight of the BN-statistics term (paper: alpha_bn)"""
    adv_weight: float = 1.3
    """weight of the adversarial term (paper: alpha_adv)"""
    cam_weight: float = 0.1
    """weight of the CAM margin term (paper: alpha_cam); 0: without CAM"""
    aed_weight: float = 5.0
    """weight of the generator's embedding term (paper: alpha_aed)"""
    ed_weight: float = 10.0
    """weight of the student's embedding term (paper: alpha_ed); both 0: without embedding diversity"""

    def check(self) -> None:
        inner, outer = self.inner_radius, self.outer_radius
        if inner > outer:
            raise UserError(f"--method.inner-radius {inner}: choose no more than --method.outer-radius {outer}")

    @property
    def steps_per_epoch(self) -> int:
        return max(1, round(self.student_steps * self.data_ratio / 100))


@dataclass(frozen=True, kw_only=True)
class MuseConfig(MuseSConfig):
    """The recipe of MUSE: MUSE-S with two image sizes, 130 and 100 images a batch."""

    image_sizes: tuple[int, ...] = (28, 32)
    """shorter sides of the images that are made, in pixels (paper: E)"""
    batch_shares: tuple[int, ...] = (13, 10)
    """how both kinds of batch are divided among the image sizes"""
    synthesis_batch_size: int = 230
    """images made in one round, of all sizes together"""
    batch_size: int = 230
    """images in one student step, of all sizes together"""
