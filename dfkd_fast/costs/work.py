"""How much work a recipe is: its steps of each kind, and its images. Arithmetic only, nothing is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from dfkd_fast.methods.base import Method


class SynthesisKind(NamedTuple):
    """Synthesis steps that cost the same."""

    image_size: int
    """of the source that makes the images, which names it"""
    stage: int
    """stage of the round (0-based)"""
    warmup: bool
    """in an epoch of the warm-up, without a student"""


@dataclass(kw_only=True)
class Work:
    """Steps and images of a run, or of its first epochs."""

    synthesis_steps: Counter[SynthesisKind] = field(default_factory=Counter)
    rounds: Counter[SynthesisKind] = field(default_factory=Counter)
    """synthesis rounds, each under the kind of its last stage"""
    images: int = 0
    """images synthesised for the student, also those that a full pool drops"""
    student_steps: int = 0
    student_epochs: int = 0


def recipe_work(method: Method, epochs: int | None = None) -> Work:
    """What the first `epochs` of a method's recipe come to; without it all of them.

    Rounds and student steps are the method's own answers, so that a pool's cap and a data ratio are in them.
    """
    work, config = Work(), method.config
    for epoch in range(config.epochs if epochs is None else min(epochs, config.epochs)):
        for source in method.sources():
            rounds = source.rounds(epoch)
            for kind, steps in stage_kinds(source, warmup=epoch < config.warmup_epochs):
                work.synthesis_steps[kind] += rounds * steps
            work.rounds[kind] += rounds
            filled = source.fill_images() if epoch + 1 == config.warmup_epochs else 0
            if method.loop == "alternating":
                work.images += rounds * source.config.synthesis_batch_size + filled
        if epoch >= config.warmup_epochs:
            work.student_steps += method.student_steps(epoch)
            work.student_epochs += 1
            if method.loop == "stepwise":
                work.images += method.student_steps(epoch) * config.batch_size
    work.synthesis_steps, work.rounds = +work.synthesis_steps, +work.rounds  # without those that never come
    return work


def stage_kinds(source: Method, *, warmup: bool) -> Iterable[tuple[SynthesisKind, int]]:
    """Kind and number of the steps of each stage of a round."""
    size = source.info.image_size
    return [(SynthesisKind(size, stage, warmup), steps) for stage, steps in enumerate(source.stages())]


def probe_epoch(method: Method, *, warmup: bool) -> int:
    """An epoch whose steps stand for all of the warm-up, or for all after it: the second one there, as methods bring
    the student in with the first or the second.
    """
    config = method.config
    return 0 if warmup else min(config.warmup_epochs + 1, config.epochs - 1)
