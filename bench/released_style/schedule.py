"""Rounds of each epoch, as the methods' algorithms have them, and which settings the baseline can follow."""

from __future__ import annotations

from typing import Any

from dfkd_fast.config.sources import default_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.text.label_embeddings import MADE_UP

METHODS = ("nayer", "ssdkd", "fast", "muse-s", "cmi")

FOLLOWED = {
    *("epochs", "warmup_epochs", "synthesis_batch_size", "synthesis_steps", "batch_size", "student_steps"),
    *("student_optimizer", "student_lr", "student_lr_min", "student_momentum", "student_weight_decay"),
    *("kd_temperature", "crop_padding", "warmup_rounds", "rounds", "generator_life", "generator_lr", "noise_features"),
    *("generator_width", "bn_momentum", "ce_weight", "bn_weight", "adv_weight", "student_mode", "latent_lr"),
    *("reset_epoch", "latent_dim", "buffer_size", "focus", "priority_exponent", "is_exponent", "priority_eps"),
    *("head_features", "bank_size", "num_negatives", "local_scale", "contrastive_temperature", "contrastive_weight"),
    *("full_images", "data_ratio", "inner_radius", "outer_radius", "cam_weight", "aed_weight", "ed_weight"),
    "image_sizes",
}
"""fields of a method's config whose value the baseline takes"""
FIXED = {"ssdkd": {"start": "fomaml"}}
"""values that it has built in where they are not the method's defaults"""


def check_followed(config: TrainConfig[Any]) -> None:
    """Raise UserError for a method that the baseline lacks, or a setting that it would pass over."""
    name = config.method_name
    if name not in METHODS:
        raise UserError(f"{name}: the baseline has no such method; choose one of {', '.join(METHODS)}")
    built_in = vars(default_config(name).method) | FIXED.get(name, {})
    for key, value in vars(config.method).items():
        if key not in FOLLOWED and value != built_in[key]:
            raise UserError(f"--method.{key.replace('_', '-')} {value}: the baseline knows {built_in[key]} alone")
    if config.text not in MADE_UP:
        raise UserError(f"--text {config.text}: the baseline takes vectors without a scale; choose {one_of(MADE_UP)}")
    if config.cache_teacher_logits or config.pool.quantize != "truncate":
        raise UserError("--cache-teacher-logits, --pool.quantize: the baseline keeps no answers and truncates pixels")


def rounds(config: Any, epoch: int, *, full_size: int) -> int:
    """Synthesis rounds in an epoch (0-based) of a method's config."""
    if hasattr(config, "full_images"):  # MUSE-S: spread evenly, until the budget of pixels is used up
        pixels = config.full_images * config.data_ratio / 100 * (full_size / config.image_sizes[0]) ** 2
        whole = -(-round(pixels) // config.synthesis_batch_size)
        due = -(-(epoch + 1) * whole // config.epochs) - -(-epoch * whole // config.epochs)
        return min(config.rounds, due)
    if hasattr(config, "warmup_rounds"):  # NAYER, CMI
        return config.warmup_rounds if epoch < config.warmup_epochs else config.rounds
    return 1


def begins_anew(config: Any, epoch: int, *, full_size: int) -> bool:
    """Whether an epoch begins with a new generator (NAYER's `g_life`)."""
    life = getattr(config, "generator_life", 0)
    if not life or epoch == 0:
        return False
    if not hasattr(config, "full_images"):
        return epoch % life == 0 or (epoch - config.warmup_epochs) % life == 0
    made = [earlier for earlier in range(epoch) if rounds(config, earlier, full_size=full_size)]
    return not made or made[-1] // life != epoch // life


def is_adversarial(config: Any, epoch: int) -> bool:
    """Whether an epoch's rounds look at the student: Fast, and SSD-KD with it, begins an epoch before the others."""
    if not config.adv_weight:
        return False
    return epoch + hasattr(config, "latent_lr") >= config.warmup_epochs
