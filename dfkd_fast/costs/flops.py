"""FLOPs of a recipe's steps, in their plain formulation: what has to be multiplied, however it is computed.

Counted by torch.utils.flop_counter while a step runs on the CPU: convolutions and matrix products, a multiplication
and an addition as two, forward and backward. Frozen networks get no weight gradients, since no method needs them;
nearest upsampling and the convolution behind it count unfolded. Divided by a device's rate of matrix products this
gives the arithmetic floor of a recipe, and by the time that was taken as well, its MFU (model FLOPs utilisation).
`done` counts what is multiplied in fact: HFU (hardware FLOPs utilisation). A library's own algorithm, such as
Winograd's, may multiply less still; that nobody counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.costs.work import RoundKind, RoundSteps, SynthesisKind, Work, probe_epochs
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.generators.layers import UpsampleConv2d
from dfkd_fast.methods.base import CollectedImages, Method, Setup, SynthBatch, weighted_sum
from dfkd_fast.methods.inner import Inner, LrScale, Variant, images_of, inners, key_of
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.teacher import FrozenNet, NetOutput, frozen_alias
from dfkd_fast.pool.pool import Pool, PoolBatch

_BATCHES = (3, 6)
"""images that are counted with, for each size; two numbers, since a part of a step may not depend on the batch (CMI's
bank)
"""

_RUNTIME = Runtime(device=torch.device("cpu"), precision="fp32", channels_last=False)

_EMBEDDING = 512  # width of the class vectors, CLIP's; what reads them is a thousandth of a step


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs of one step at the recipe's batch sizes."""

    synthesis: dict[SynthesisKind, float]
    student: float
    round_steps: RoundSteps
    """how many steps of each kind a round has"""
    answers: Mapping[ImageSize, float] = field(default_factory=dict)
    """image size -> the teacher's cached answers to a round's images"""
    done: StepFlops | None = None
    """as it is computed: upsampling folded into the convolution behind it, cached answers not asked for in each step"""

    def of_synthesis(self, work: Work) -> float:
        """Of all synthesis of `work`."""
        answers = sum(self.answers.get(kind.image_size, 0.0) * rounds for kind, rounds in work.rounds.items())
        return answers + sum(self.synthesis[kind] * steps for kind, steps in work.synthesis_steps.items())

    def of_distillation(self, work: Work) -> float:
        """Of all student steps of `work`."""
        return self.student * work.student_steps


def count_step_flops(
    method: Method, info: ModelInfo, *, teacher: str, student: str, cached_answers: int = 0
) -> StepFlops:
    """Count a synthesis step of each kind and a student step on a few images, and scale up to the method's batches.

    `info` is the teacher's; `teacher` and `student` name networks for `load_model`, whose weights do not matter.
    `cached_answers`: how many the teacher gives to each image when it is made, in place of one in each student step; 0:
    it answers in each. Runs on the CPU and leaves `method` and the random state as they are; takes up to some seconds
    for 224 pixels.
    """
    batches = [images * len(method.pools()) for images in _BATCHES]
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        learner = _network(student, info)
        frozen = FrozenNet(_network(teacher, info), info, _RUNTIME)
        embeddings = torch.randn(info.num_classes, _EMBEDDING if method.needs.text else 0)
        collected = CollectedImages.noise(info) if method.needs.real_images else None
        setup = Setup(frozen, frozen_alias(learner), info, embeddings, method.text, collected)
        few, more = (_count(method, setup, learner, batch) for batch in batches)
        folded = _count(method, setup, learner, batches[0], unfold=False)
    done = _scaled_up(method, folded, more.folded(few, folded), cached_answers)
    return replace(_scaled_up(method, few, more), done=done)


def _scaled_up(method: Method, few: _Count, more: _Count, cached_answers: int = 0) -> StepFlops:
    """From counts with two sizes of batch to the method's own."""
    plans, ranks = method.pools(), method.global_batch.size  # each rank has its part of the batch
    made = [inner.config.synthesis_batch_size // ranks for inner in inners(method)]
    rows = {plan.image_size: plan.batch_size // ranks for plan in plans}
    rounds = {plan.image_size: plan.synthesis_batch_size // ranks for plan in plans}
    student = sum(_extrapolate(few.student[size], more.student[size], count) for size, count in rows.items())
    answers = sum(few.answer[size] * count for size, count in rows.items()) if cached_answers else 0.0
    return StepFlops(
        synthesis={
            kind: _extrapolate(few.synthesis[kind], more.synthesis[kind], made[kind.inner]) for kind in few.synthesis
        },
        student=student - answers,
        round_steps=few.round_steps,
        answers={size: cached_answers * few.answer[size] * count for size, count in rounds.items()},
    )


def _network(spec: str, info: ModelInfo) -> nn.Module:
    network, _ = load_model(
        spec, num_classes=info.num_classes, image_size=info.image_size, mean=info.mean, std=info.std
    )
    return network


class _Count(NamedTuple):
    """FLOPs of steps, each with the images of its batch."""

    synthesis: dict[SynthesisKind, tuple[int, float]]
    student: dict[ImageSize, tuple[int, float]]
    """by image size"""
    answer: dict[ImageSize, float]
    """of the teacher's answer to one image in a student step, by image size"""
    round_steps: dict[RoundKind, Counter[SynthesisKind]]

    def folded(self, few: _Count, folded: _Count) -> _Count:
        """This count with upsampling folded, which saves in proportion to the batch: so much, says another batch."""

        def less(counted: tuple[int, float], plain: tuple[int, float], fewer: tuple[int, float]) -> tuple[int, float]:
            return counted[0], counted[1] - (plain[1] - fewer[1]) * counted[0] / plain[0]

        synthesis = {
            kind: less(counted, few.synthesis[kind], folded.synthesis[kind]) for kind, counted in self.synthesis.items()
        }
        student = {
            size: less(counted, few.student[size], folded.student[size]) for size, counted in self.student.items()
        }
        return self._replace(synthesis=synthesis, student=student)


def _extrapolate(few: tuple[int, float], more: tuple[int, float], batch: int) -> float:
    slope = (more[1] - few[1]) / (more[0] - few[0])
    return few[1] + slope * (batch - few[0])


def _count(method: Method, setup: Setup, student: nn.Module, batch: int, *, unfold: bool = True) -> _Count:
    """The FLOPs of a method like `method`, with batches of `batch` images of all sizes together."""
    small = type(method)(replace(method.config, synthesis_batch_size=batch, batch_size=batch), setup)
    small.train()
    if unfold:
        _unfold(small)
    count = _Count({}, {}, {}, {})
    engines = [_Counter(place, inner, count) for place, inner in enumerate(inners(small))]
    maps = small.student_reads().student
    seen: Callable[[Tensor], Any] = student if maps is None else FeatureExtractor(student, maps=maps)
    chans, classes, config, plans = setup.info.in_chans, setup.info.num_classes, small.config, small.pools()
    for plan in plans:
        plan.opened(Pool(64, (chans, *plan.image_size), runtime=_RUNTIME, num_classes=classes))
    for plan in plans:
        made = None
        for kind, epoch in probe_epochs(plan, epochs=config.epochs, warmup_epochs=config.warmup_epochs):
            made = _probe(small, engines, kind, epoch, count)
        if made is None:  # no rounds: what fills the pool
            made = next(iter(small.synthesize(config.warmup_epochs - 1)))
        step, answer = _count_student(small, setup, seen, made)
        count.student[plan.image_size] = (len(made.images), step)
        count.answer[plan.image_size] = answer / len(made.images)
    return count


def _probe(method: Method, engines: list[_Counter], kind: RoundKind, epoch: int, count: _Count) -> SynthBatch:
    """Count the steps of one round of a kind, in an epoch that has one, and return what it makes."""
    for engine in engines:
        engine.warmup = kind.warmup
    is_first = True
    for made in method.synthesize(epoch):
        count.round_steps[kind] = sum((engine.taken() for engine in engines), Counter())
        if made.images.shape[-2:] == kind.image_size:
            if is_first != kind.later:
                return made
            is_first = False
    raise AssertionError(f"no round of {kind} in epoch {epoch}")


class _Counter:
    """An engine that takes the first step of each kind, and counts its FLOPs and how many more there would be."""

    def __init__(self, place: int, inner: Inner, count: _Count) -> None:
        self.place, self.inner, self.count, self.warmup = place, inner, count, True
        inner.optimizers()  # a method may only now say what asks for gradients
        inner.engine = self
        self._made: Any = None
        self._steps: Counter[SynthesisKind] = Counter()

    def run(self, steps: int, lr_scale: LrScale, variant: Variant) -> Any:
        """What one step makes."""
        kind = SynthesisKind(self.place, key_of(variant), self.warmup)
        self._steps[kind] += steps
        if kind not in self.count.synthesis:
            with FlopCounterMode(display=False) as counter:
                made, terms = self.inner.step(**variant)
                weighted_sum(terms, self.inner.config).backward()
            if self.inner.after is not None:
                self.inner.after()
            self._made = tree_map(torch.detach, made)
            self.count.synthesis[kind] = (len(images_of(made)), counter.get_total_flops())
        return self._made

    def inference(self) -> AbstractContextManager[Any]:
        """Without gradients; there is no other precision here."""
        return torch.no_grad()

    def taken(self) -> Counter[SynthesisKind]:
        """The steps since the last call."""
        steps, self._steps = self._steps, Counter()
        return steps


def _count_student(
    method: Method, setup: Setup, student: Callable[[Tensor], Any], made: SynthBatch
) -> tuple[float, float]:
    """A student step, and the teacher's part of it."""
    batch = PoolBatch(made.images, made.labels, torch.arange(len(made.images)), made.extras)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            view = method.student_view(batch)
        reads, before = method.student_reads(), counter.get_total_flops()
        teacher = setup.teacher.answer(view, maps=reads.teacher, gradients=reads.teacher_gradients)
        answer_flops = counter.get_total_flops() - before
        out = student(view)
        answer = out if isinstance(out, NetOutput) else NetOutput(out)
        weighted_sum(method.student_loss(batch, teacher, answer), method.config).backward()
    return counter.get_total_flops(), answer_flops


def _unfold(method: nn.Module) -> None:
    for module in method.modules():
        if isinstance(module, UpsampleConv2d):
            module.forward = partial(_upsample_then_convolve, module)  # type: ignore[method-assign]


def _upsample_then_convolve(layer: nn.Conv2d, maps: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(maps, scale_factor=2), layer.weight, padding=1)
