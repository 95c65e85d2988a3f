"""FLOPs of a recipe's steps, in their plain formulation: what has to be multiplied, however it is computed.

Counted by torch.utils.flop_counter while a step runs on the CPU: convolutions and matrix products, a multiplication
and an addition as two, forward and backward. Frozen networks get no weight gradients, since no method needs them;
nearest upsampling and the convolution behind it count unfolded. Divided by a device's rate of matrix products this
gives the arithmetic floor of a recipe, and by the time that was taken as well, its MFU (model FLOP utilisation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dfkd_fast.costs.work import SynthesisKind, Work, probe_epoch, stage_kinds
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.generators.upsample_conv import UpsampleConv2d
from dfkd_fast.methods.base import CollectedImages, Method, Setup, SynthBatch, weighted_sum
from dfkd_fast.methods.stepwise import StepwiseMethod
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.teacher import FrozenNet, NetOutput, frozen_alias
from dfkd_fast.pool.pool import Pool, PoolBatch

_BATCHES = (3, 6)
"""images that are counted with, for each size; two numbers, since a part of a step may not depend on the batch (CMI's
bank)
"""

_EMBEDDING = 512  # width of the class vectors, CLIP's; what reads them is a thousandth of a step


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs of one step at the recipe's batch sizes."""

    synthesis: dict[SynthesisKind, float]
    student: float

    def of_synthesis(self, work: Work) -> float:
        """Of all synthesis steps of `work`."""
        return sum(self.synthesis[kind] * steps for kind, steps in work.synthesis_steps.items())

    def of_distillation(self, work: Work) -> float:
        """Of all student steps of `work`."""
        return self.student * work.student_steps


def count_step_flops(method: Method, info: ModelInfo, *, teacher: str, student: str) -> StepFlops:
    """Count a synthesis step of each kind and a student step on a few images, and scale up to the method's batches.

    `info` is the teacher's; `teacher` and `student` name networks for `load_model`, whose weights do not matter. Runs
    on the CPU and leaves `method` and the random state as they are; takes up to some seconds for 224 pixels.
    """
    runtime = Runtime(device=torch.device("cpu"), precision="fp32", channels_last=False)
    sources = {source.info.image_size: source.config for source in method.sources()}
    batches = [images * len(sources) for images in _BATCHES]
    ranks = method.global_batch.size  # each has its part of the batch
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        learner = _network(student, info)
        frozen = FrozenNet(_network(teacher, info), info, runtime)
        embeddings = torch.randn(info.num_classes, _EMBEDDING if type(method).text_sources else 0)
        collected = CollectedImages.noise(info) if method.needs_data else None
        setup = Setup(frozen, frozen_alias(learner), info, embeddings, method.text, collected)
        few, more = (_count(method, setup, learner, runtime, batch) for batch in batches)
    return StepFlops(
        synthesis={
            kind: _extrapolate(
                few.synthesis[kind], more.synthesis[kind], sources[kind.image_size].synthesis_batch_size // ranks
            )
            for kind in few.synthesis
        },
        student=sum(
            _extrapolate(few.student[size], more.student[size], sources[size].batch_size // ranks) for size in sources
        ),
    )


def _network(spec: str, info: ModelInfo) -> nn.Module:
    network, _ = load_model(
        spec, num_classes=info.num_classes, image_size=info.image_size, mean=info.mean, std=info.std
    )
    return network


class _Count(NamedTuple):
    """FLOPs of steps, each with the images of its batch."""

    synthesis: dict[SynthesisKind, tuple[int, float]]
    student: dict[int, tuple[int, float]]
    """by image size"""


def _extrapolate(few: tuple[int, float], more: tuple[int, float], batch: int) -> float:
    slope = (more[1] - few[1]) / (more[0] - few[0])
    return few[1] + slope * (batch - few[0])


def _count(method: Method, setup: Setup, student: nn.Module, runtime: Runtime, batch: int) -> _Count:
    """The FLOPs of a method like `method`, with batches of `batch` images of all sizes together."""
    small = type(method)(replace(method.config, synthesis_batch_size=batch, batch_size=batch), setup)
    small.train()
    _unfold(small)
    count = _Count({}, {})
    maps = small.student_maps()
    seen: Callable[[Tensor], Any] = student if maps is None else FeatureExtractor(student, maps=maps)
    for source in small.sources():
        for warmup in (True, False):
            made = _count_round(small, source, runtime, warmup=warmup, found=count.synthesis)
        count.student[source.info.image_size] = (len(made.images), _count_student(small, setup, seen, made))
    return count


def _count_round(
    method: Method, source: Method, runtime: Runtime, *, warmup: bool, found: dict[SynthesisKind, tuple[int, float]]
) -> SynthBatch:
    """Count one step of each stage of a round, and return what the round makes."""
    info = source.info
    source.open_pool(
        Pool(64, (info.in_chans, info.image_size, info.image_size), runtime=runtime, num_classes=info.num_classes)
    )
    source.synthesis_optimizer()  # where a method says what asks for gradients
    source.begin_round(probe_epoch(method, warmup=warmup), 0)
    for kind, _ in stage_kinds(source, warmup=warmup):
        source.begin_stage(kind.stage)
        flops = 0.0
        for step in range(source.turns):
            source.begin_step(step)
            with FlopCounterMode(display=False) as counter:
                images, terms = source.synthesis_step()
                weighted_sum(terms, source.config).backward()
            source.keep_best(torch.tensor(True))
            source.end_step()
            flops += counter.get_total_flops() / source.turns
        found[kind] = (len(images), flops)
    with torch.no_grad():
        return source.end_round(images.detach())


def _count_student(method: Method, setup: Setup, student: Callable[[Tensor], Any], made: SynthBatch) -> float:
    batch = PoolBatch(made.images, made.labels, torch.arange(len(made.images)), made.extras)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            if isinstance(method, StepwiseMethod):
                batch = batch._replace(images=method.fresh_images())
            view = method.student_view(batch)
        teacher = setup.teacher.answer(view, maps=method.teacher_maps, gradients=method.teacher_gradients)
        out = student(view)
        answer = out if isinstance(out, NetOutput) else NetOutput(out)
        weighted_sum(method.student_loss(batch, teacher, answer), method.config).backward()
    return counter.get_total_flops()


def _unfold(method: nn.Module) -> None:
    for module in method.modules():
        if isinstance(module, UpsampleConv2d):
            module.forward = partial(_upsample_then_convolve, module)  # type: ignore[method-assign]


def _upsample_then_convolve(layer: nn.Conv2d, maps: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(maps, scale_factor=2), layer.weight, padding=1)
