"""The amount of work in a recipe: its steps of each kind, and its images. Arithmetic only, nothing is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.methods.base import Method, PoolPlan
from dfkd_fast.methods.inner import VariantKey


class SynthesisKind(NamedTuple):
    """Synthesis steps that cost the same."""

    inner: int
    """whose steps they are: place among the method's inner optimisations"""
    variant: VariantKey
    """keyword arguments of the step, by name"""
    warmup: bool
    """in an epoch of the warm-up"""


class RoundKind(NamedTuple):
    """Synthesis rounds that cost the same: an epoch's first, or those behind it, of which the second stands for all.
    NAYER's student, say, is in train mode from the second on.
    """

    image_size: ImageSize
    """height and width of the images that they leave, in pixels"""
    warmup: bool
    """in an epoch of the warm-up"""
    later: bool = False
    """not the first of its size in its epoch"""


RoundSteps = Mapping[RoundKind, Mapping[SynthesisKind, int]]
"""the steps of one round, as one has been seen to run"""


@dataclass(kw_only=True)
class Work:
    """Steps and images of a run, or of its first epochs."""

    synthesis_steps: Counter[SynthesisKind] = field(default_factory=Counter)
    rounds: Counter[RoundKind] = field(default_factory=Counter)
    images: int = 0
    """images synthesised for the student, also those that a full pool drops"""
    student_steps: int = 0
    student_epochs: int = 0


def recipe_work(method: Method, round_steps: RoundSteps, epochs: int | None = None) -> Work:
    """What the first `epochs` of a method's recipe come to; without it all of them.

    Rounds and student steps are the method's own answers, so that a pool's cap and a data ratio are in them.
    """
    work, config, plans = Work(), method.config, method.pools()
    for epoch in range(config.epochs if epochs is None else min(epochs, config.epochs)):
        for plan in plans:
            rounds = plan.rounds(epoch)
            for later, part in ((False, min(rounds, 1)), (True, max(rounds - 1, 0))):
                kind = RoundKind(plan.image_size, epoch < config.warmup_epochs, later)
                for steps, count in round_steps[kind].items() if part else ():
                    work.synthesis_steps[steps] += part * count
                work.rounds[kind] += part
            if plan.capacity:
                filled = plan.fill_images if epoch + 1 == config.warmup_epochs else 0
                work.images += rounds * plan.synthesis_batch_size + filled
        if epoch >= config.warmup_epochs:
            work.student_steps += config.steps_per_epoch
            work.student_epochs += 1
            work.images += sum(config.steps_per_epoch * plan.batch_size for plan in plans if not plan.capacity)
    work.rounds = +work.rounds  # without those that never come
    return work


def probe_epochs(plan: PoolPlan, *, epochs: int, warmup_epochs: int) -> Iterator[tuple[RoundKind, int]]:
    """For each kind of round that a plan has, an epoch whose rounds stand for all of the kind: of those after warm-up
    the second, if it has any, as methods bring the student in with the first or the second.
    """
    after = [*range(warmup_epochs + 1, epochs), *range(warmup_epochs, min(warmup_epochs + 1, epochs))]
    for warmup, candidates in ((True, range(min(warmup_epochs, epochs))), (False, after)):
        for later in (False, True):
            found = next((epoch for epoch in candidates if plan.rounds(epoch) > later), None)
            if found is not None:
                yield RoundKind(plan.image_size, warmup, later), found


def student_epoch(method: Method) -> int:
    """An epoch whose student steps stand for all."""
    return min(method.config.warmup_epochs + 1, method.config.epochs - 1)
