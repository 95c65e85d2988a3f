"""What a teacher is worth, said before anything is spent on it: does it fit, its accuracy, how it answers noise."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from dfkd_fast.catalog import FACTS
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.data.stream import LabelledImages
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.messages.refusals import is_out_of_memory
from dfkd_fast.methods.base import Method
from dfkd_fast.models.fitting import listed
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.probe import suspicions
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.training.evaluate import Evaluation, Expected, check_fit, evaluate
from dfkd_kernels.freeze.norms import is_frozen_batchnorm

CHECK = "check --mean and --std, --class-order, --interpolation and the weights"
_FAR = 0.05  # of accuracy: other image libraries and precisions move it by less


class Verdict(NamedTuple):
    """A teacher's figures, and the lines that say them."""

    test: LabelledImages | None
    """the images that it was judged by, and the student will be"""
    evaluation: Evaluation | None
    """None without test images"""
    lines: list[str]
    """what it expects of its input and who says so; its accuracy; warnings"""


def judge_teacher(
    teacher: FrozenNet, test: Expected[LabelledImages] | None, config: TrainConfig, runtime: Runtime
) -> Verdict:
    """Evaluate a teacher on the test images, or without any look at how it answers noise; all ranks call this."""
    info = teacher.info
    lines = [f"teacher {info.name}: {info.described()}"]
    if info.published:
        lines.append(f"teacher {info.name}: published weights, {info.published}")
    if teacher.unmatched:
        lines.append(f"teacher {info.name}: {len(teacher.unmatched)} layers unmatched: {listed(teacher.unmatched)}")
    if test is None:
        lines.append("no --data: the student is not evaluated")
        return Verdict(None, None, [*lines, *suspicions(teacher, runtime)])
    batch_size = config.eval.batch_size
    found = evaluate(teacher.logits, test.images, info=info, runtime=runtime, batch_size=batch_size, shared=True)
    images = test.images
    lines.append(f"teacher top-1 {found.top1:.4f} on {len(images)} images of {images.name}, at {info.image_size} px")
    return Verdict(images, found, [*lines, *accuracy_lines(found.top1, info, test)])


def accuracy_lines(top1: float, info: ModelInfo, test: Expected[LabelledImages]) -> list[str]:
    """How the images were read, and a warning where the accuracy on them is near chance, or far below what the
    network's file says.
    """
    lines, images = list(test.notes), test.images
    chance = 1 / info.num_classes
    spread = math.sqrt(chance * (1 - chance) / len(images))
    claimed, entry = info.claimed_top1, f" ({info.claimed_by})" if info.claimed_by else ""
    is_far = claimed is not None and top1 < claimed - _FAR
    if top1 <= max(chance + 2 * spread, min(2.5 * chance, chance + 0.1 * (1 - chance))):
        said = f"; its file says {claimed:.4f}{entry}" if is_far else ""
        lines.append(f"warning: that is near chance, {chance:.4f} for {info.num_classes} classes; {CHECK}{said}")
    elif is_far:
        lines.append(f"warning: that is far below the {claimed:.4f} that its file says{entry}; {CHECK}")
    return lines


def check_teacher(
    teacher: nn.Module, info: ModelInfo, method: type[Method], config: TrainConfig, test: LabelledImages | None
) -> None:
    """Raise UserError where teacher, data and method do not fit, before anything is written."""
    bn_weight = getattr(config.method, "bn_weight", None)
    matches = method.needs.batchnorm if bn_weight is None else bn_weight != 0
    if matches and not any(map(_has_statistics, teacher.modules())):
        flag = "" if bn_weight is None else "give --method.bn-weight 0, "
        others = [name for name, facts in FACTS.items() if facts.batchnorm == "no"]
        without = f", or a method that needs none: {one_of(others)}" if others else ""
        raise UserError(
            f"--teacher {config.teacher}: {config.method_name} matches BatchNorm statistics and this network has none; "
            f"{flag}choose a teacher with BatchNorm{without}"
        )
    if test is not None:
        check_fit(test, info, "--data")


def check_frozen(teacher: FrozenNet, runtime: Runtime) -> None:
    """Raise UserError where the teacher as the run computes it fails on an image, or passes no gradient back to it."""
    cuda = [runtime.device] if runtime.device.type == "cuda" else []
    view = teacher.info.blank(torch.zeros((), device=runtime.device, dtype=runtime.master_dtype))
    view = view.expand(2, -1, -1, -1).clone().requires_grad_()
    with torch.random.fork_rng(devices=cuda):  # a vision transformer draws where it looks
        try:
            with runtime.autocast():
                logits = teacher(view).logits
            logits.float().sum().backward()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"--teacher {teacher.info.name}: passes no gradient back to its images, which methods learn by "
                f"({reason}); choose another network"
            ) from error


def _has_statistics(module: nn.Module) -> bool:
    """Whether a frozen network hands out batch moments of this layer."""
    counts = isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) or is_frozen_batchnorm(module)
    return counts and getattr(module, "running_mean", None) is not None
