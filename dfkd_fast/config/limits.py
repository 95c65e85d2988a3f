"""What a number among the settings may not fall below or exceed, by its key, in whichever config."""

from __future__ import annotations

import math

_RECIPE_LEAST = {
    **dict.fromkeys(("epochs", "batch_size"), 1),
    **dict.fromkeys(("lr", "momentum", "weight_decay", "label_smoothing", "crop_padding"), 0),
}
LEAST = {
    **dict.fromkeys(("method.epochs", "method.batch_size", "method.synthesis_steps", "method.student_steps"), 1),
    **dict.fromkeys(("method.noise_features", "method.generator_width", "method.latent_dim"), 1),
    **dict.fromkeys(("method.synthetic_images", "method.inflation", "method.student_steps_per_round"), 1),
    **dict.fromkeys(("method.grad_cam_stages", "method.attention_stages", "method.exchange_probability"), 0),
    **dict.fromkeys(("method.latent_lr", "method.meta_lr", "method.meta_decay", "method.reset_epoch"), 0),
    **dict.fromkeys(("method.discriminator_lr", "method.frequency_momentum", "method.blend_threshold"), 0),
    **dict.fromkeys(("method.head_features", "method.num_negatives"), 1),
    **dict.fromkeys(("method.image_lr", "method.lr_warmup_steps", "method.window_decay"), 0),
    **dict.fromkeys(("method.warmup_epochs", "method.warmup_rounds", "method.rounds", "method.generator_life"), 0),
    **dict.fromkeys(("method.student_lr", "method.student_lr_min", "method.generator_lr", "method.crop_padding"), 0),
    **dict.fromkeys(("method.student_momentum", "method.student_weight_decay"), 0),
    **dict.fromkeys(("method.student_ramp_epochs", "method.student_ramp_share"), 0),
    **dict.fromkeys(("method.student_lr_steps", "method.image_sizes", "method.batch_shares"), 1),
    **dict.fromkeys(("method.buffer_size", "method.bank_size", "method.full_images", "method.image_budget"), 1),
    **dict.fromkeys(("method.focus", "method.priority_exponent", "method.is_exponent", "method.bn_momentum"), 0),
    **dict.fromkeys(("method.inner_radius", "method.outer_radius", "method.image_betas", "method.jitter"), 0),
    **dict.fromkeys(("method.meta_latent_lr", "method.meta_life", "method.low_res_steps"), 0),
    "method.synthesis_batch_size": 2,  # one image has no batch statistics
    **{f"{section}.{key}": least for section in ("recipe", "teacher_recipe") for key, least in _RECIPE_LEAST.items()},
    **dict.fromkeys(
        ("image_size", "synthesis_micro_batches", "threads", "stop_after_epoch", "pool.capacity", "log.every"), 1
    ),
    **dict.fromkeys(("checkpoint.every", "eval.batch_size", "batch_size"), 1),
    "checkpoint.keep": 2,  # where the newest is damaged, an older one is taken
    **dict.fromkeys(("eval.workers", "eval.resize", "workers", "resize"), 1),
    **dict.fromkeys(("seed", "cache_teacher_logits", "eval.every", "log.images_per_class", "pool.prefetch"), 0),
    "num_classes": 2,
    "in_chans": 1,
}
"""the least value of a setting, whichever config has it"""

ABOVE_ZERO = (
    "method.kd_temperature",
    "method.priority_temperature",
    "method.contrastive_temperature",
    "method.priority_eps",  # an image of priority 0 is never drawn again
    "method.data_ratio",
    "method.cam_sigma",
    "method.crop_scale",
    "method.student_crop_scale",
    "method.local_scale",
    "recipe.crop_scale",
    "teacher_recipe.crop_scale",
    "collected_memory",
)
"""settings that must be above 0"""

SHARES = (
    *(f"{section}.{key}" for section in ("recipe", "teacher_recipe") for key in ("crop_scale", "label_smoothing")),
    *(f"method.{key}" for key in ("crop_scale", "student_crop_scale", "local_scale", "image_betas", "bn_momentum")),
    *(f"method.{key}" for key in ("exchange_probability", "blend_threshold", "frequency_momentum")),
    "method.student_momentum",
)
"""settings that may not be above 1"""

ANY = ("method.cam_peak", "method.attention_scale", "method.first_bn_weight", "method.reptile_scale")
"""a recipe's factors, which any finite number can be, beside the weights of its terms (`..._weight`, `msarc_alpha`)"""

MOST = {
    **dict.fromkeys(("method.epochs", "method.warmup_epochs", "recipe.epochs", "teacher_recipe.epochs"), 10**6),
    **dict.fromkeys(("seed", "teacher_recipe.seed", "recipe.seed"), 2**63 - 1),
    **dict.fromkeys(("image_size", "eval.resize", "resize"), 2**15),
    **dict.fromkeys(("threads", "workers", "eval.workers"), 2**12),
    "pool.capacity": 2**40,
}
"""the most of a whole number, far above what anybody computes: a slip of the pen ends at once, not in years"""
MOST_OTHERS = 10**9
"""of one that is not listed"""


def limit_broken(key: str, value: int | float) -> str:
    """The limit that a number breaks, as what to choose instead; "" for one that is allowed. Of several in a setting
    each has its limits.
    """
    if not math.isfinite(value):
        return "a finite number"
    if key in LEAST and value < LEAST[key]:
        return f"{LEAST[key]} or more"
    if key in ABOVE_ZERO and value <= 0:
        return "more than 0"
    if key in SHARES and value > 1:
        return "1 or less"
    if isinstance(value, int) and value > MOST.get(key, MOST_OTHERS):
        return f"{MOST.get(key, MOST_OTHERS)} or less"
    return ""
