"""A student's recipe: its optimiser and learning rates, answers to mixed images, and what is checked of all that."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd_fast.augment import Mix, mixed
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.messages.notes import note
from dfkd_fast.methods.base import Method, MethodConfig
from dfkd_fast.models.teacher import FrozenNet, NetOutput
from dfkd_fast.optim import OptimizerSpec, cosine
from dfkd_fast.parallel.global_batch import GlobalBatch
from dfkd_fast.training.int8_teacher import check_int8

_HIGH_ADAMW_RATE = 0.02
"""a rate from which on AdamW's steps, each about as long as the rate, seldom lead anywhere"""
_START = 1 / 25
"""of the peak rate, where a one-cycle schedule begins (torch's OneCycleLR)"""


def check_student(method: Method, teacher: FrozenNet, runtime: Runtime, *, is_cached: bool) -> None:
    """Raise UserError for settings of the student's steps that do not go with method, teacher or runtime."""
    check_int8(method, teacher, is_cached=is_cached)
    config = method.config
    _check_mix(method, is_cached=is_cached)
    if config.student_optimizer == "muon" and runtime.precision == "fp16":
        raise UserError(
            "--student-optimizer muon: knows no loss scale, which --precision fp16 has; choose bf16 or fp32"
        )
    if config.student_optimizer in ("adamw", "muon") and config.student_lr >= _HIGH_ADAMW_RATE:
        rate = f"--student-lr {config.student_lr:g}"
        note(f"{rate}: a rate for SGD; --student-optimizer {config.student_optimizer} mostly wants about 0.001")


def _check_mix(method: Method, *, is_cached: bool) -> None:
    config, reads, plans = method.config, method.student_reads(), method.pools()
    flag = f"--student-mix {config.student_mix}"
    if config.student_mix == "none":
        return
    if reads.labels:
        raise UserError(f"{flag}: this student also learns from labels, and a mixture has none; choose none")
    if reads.student is not None or reads.teacher or reads.teacher_features:
        raise UserError(f"{flag}: this student learns from more than logits; choose none")
    if min(plan.batch_size for plan in plans) < 2:
        raise UserError(f"{flag}: a batch of one image, and nothing to mix it with; choose none, or a larger batch")
    if is_cached:
        note(f"{flag}: the answer to a mixture is the mixture of the cached answers, not what the teacher says of it")


def student_optimizer(config: MethodConfig, student: nn.Module, head: nn.Module | None, runtime: Runtime) -> Optimizer:
    """The optimiser of the student, and of the method's head with it."""
    parameters: list[Tensor] = [*student.parameters(), *(head.parameters() if head is not None else ())]
    return OptimizerSpec(
        kind=config.student_optimizer,
        groups=[{"params": parameters, "lr": config.student_lr}],
        betas=(config.student_momentum, 0.999),
        momentum=config.student_momentum,
        weight_decay=config.student_weight_decay,
    ).build(runtime.optimizer, capturable=runtime.graphs)


def has_step_rates(config: MethodConfig) -> bool:
    """Whether each step has a learning rate of its own."""
    return config.student_schedule == "one-cycle"


def student_lr(config: MethodConfig, epoch: int, step: int = 0) -> float:
    """The student's learning rate in a step of an epoch (both 0-based), from the end of the warm-up on.

    One value per epoch: linear over `ramp_epochs`, then a cosine from `student_lr` to `student_lr_min` over the rest,
    or a tenth of it for each of `student_lr_steps` that has passed. One-cycle (Smith and Topin, arXiv:1708.07120): one
    per step, linear from a 25th of `student_lr` over the ramp or, without one, the first quarter, then such a cosine.
    """
    distilled, epochs = epoch - config.warmup_epochs, config.epochs - config.warmup_epochs
    if has_step_rates(config):
        at = distilled + step / config.steps_per_epoch
        rise = config.student_ramp_epochs or (config.student_ramp_share or 0.25) * epochs
        if at < rise:
            return config.student_lr * (_START + (1 - _START) * at / rise)
        return _falling(config, (at - rise) / (epochs - rise))
    ramp = config.ramp_epochs
    if distilled < ramp:
        return config.student_lr * (distilled + 1) / ramp
    if config.student_lr_steps:
        return config.student_lr * 0.1 ** sum(distilled >= passed for passed in config.student_lr_steps)
    return _falling(config, (distilled - ramp) / (epochs - ramp))


def _falling(config: MethodConfig, progress: float) -> float:
    return config.student_lr_min + (config.student_lr - config.student_lr_min) * cosine(progress)


def combined(answers: NetOutput, mix: Mix, config: MethodConfig, global_batch: GlobalBatch) -> NetOutput:
    """Answers to a mixture from those to its images, logits (B, K): such that their softmax at the distillation's
    temperature is both images' softmaxes, by the shares that they have of the mixture. An approximation.
    """
    shares, temperature = mix.shares, config.kd_temperature
    soft = (answers.logits.float() / temperature).softmax(dim=1)
    both = mixed(soft, Mix(mix.partners, shares[:, None]), global_batch=global_batch)
    logits = temperature * both.log()
    return NetOutput((logits - logits.mean(dim=1, keepdim=True)).to(answers.logits.dtype))
