"""Assess a teacher before anything is spent on it: its fit, its accuracy, its response to noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dfkd_fast.catalog import FACTS
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.data.stream import LabelledImages
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.messages.refusals import is_out_of_memory
from dfkd_fast.methods.base import Method
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.programs import Scripted
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.models.weights.fitting import listed
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
    bn_weight = None if method.needs.norm_inputs else getattr(config.method, "bn_weight", None)
    matches = method.needs.batchnorm if bn_weight is None else bn_weight != 0
    if matches and not any(map(_has_statistics, teacher.modules())):
        flag = "" if bn_weight is None else "give --method.bn-weight 0, "
        others = [name for name, facts in FACTS.items() if facts.batchnorm == "no"]
        without = f", or a method that needs none: {one_of(others)}" if others else ""
        lacks = "this network has none"
        if isinstance(teacher, Scripted) and teacher.has_statistics:
            lacks = "TorchScript hands out none of its layers' input (a .pt2 file of torch.export does)"
        raise UserError(
            f"--teacher {config.teacher}: {config.method_name} matches BatchNorm statistics and {lacks}; "
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


# Noise tells whether a network has been trained, and on input of the scale that it is given, where no image can.
# Thresholds are from trained and fresh networks of several kinds: on noise of natural images' spectrum the first
# BatchNorm layer sees 0.5 to 1.1 times the variance of its statistics, and logits of one image spread by 1 to 7; fresh
# networks' spread by 0.02 to 0.4.
_LEAST_SPREAD = 0.5  # of an image's logits over the classes
_MOST_SCALE = 3.2  # how many times stronger, or weaker, a first layer's input may be than in training
_IMAGES = 32


@torch.no_grad()
def suspicions(teacher: FrozenNet, runtime: Runtime) -> list[str]:
    """Warnings, a line each, of what looks untrained or wrongly scaled; all ranks call this. Takes no random numbers
    from torch's own stream.
    """
    view = natural_noise(teacher.info, _IMAGES).to(runtime.device, runtime.master_dtype)
    with runtime.autocast():
        found = teacher(view.contiguous(memory_format=runtime.memory_format))
    lines = [*_untrained(found.logits, teacher)]
    if found.moments and not _is_fresh(teacher):
        expected = teacher.targets[0][1].double().clamp_min(1e-12)
        ratio = (found.moments[0].var().double() / expected).sqrt().median().item()
        if not 1 / _MOST_SCALE < ratio < _MOST_SCALE:
            times = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g}" if ratio > 0 else "nothing"
            lines.append(
                f"noise of the stated mean and std reaches its first BatchNorm layer {times} as strong as its training "
                "images did; check --mean and --std"
            )
    return [f"warning: the teacher {line}" if line.startswith("has") else f"warning: {line}" for line in lines]


def _untrained(logits: Tensor, teacher: FrozenNet) -> Iterator[str]:
    spread = logits.double().std(dim=1).mean().item()
    if _is_fresh(teacher):
        yield "has the BatchNorm statistics of a network that has seen no image; check the weights"
    elif not spread >= _LEAST_SPREAD:
        yield (
            f"has logits that spread by {spread:.2g} over the classes on noise, as those of a network that has learned "
            "nothing; check the weights"
        )


def _is_fresh(teacher: FrozenNet) -> bool:
    """Whether every BatchNorm layer has the statistics that it was made with."""
    targets = teacher.targets
    return bool(targets) and all(bool((mean == 0).all() and (var == 1).all()) for mean, var in targets)


def natural_noise(info: ModelInfo, count: int) -> Tensor:
    """Normalised images (count, C, H, W), float32: Gaussian noise of mean 0 and variance 1, whose amplitude falls with
    the frequency as that of natural images does, with channels that mostly agree. The same on every machine and call.
    """
    size, channels = info.image_size, info.in_chans
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(count, 1, *size, generator=generator)
    white = common + 0.3 * torch.randn(count, channels, *size, generator=generator)
    rows, columns = torch.fft.fftfreq(size.height)[:, None], torch.fft.rfftfreq(size.width)
    frequency = (rows**2 + columns**2 + size.area**-1).sqrt()
    noise = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=size)
    return (noise - noise.mean()) / noise.std()
