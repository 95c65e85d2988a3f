"""Advice on a teacher: what its responses say of its input, and which methods take it, with which flags."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from dfkd_fast.catalog import FACTS, METHODS
from dfkd_fast.config.sources import default_config
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.diagnosis.batchnorm import Finding
from dfkd_fast.diagnosis.response import STEPS, Response
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import CollectedImages, Method
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.training.assemble import load_method, make_method

SPREAD = (0.3, 3.0)
"""bounds of `Response.spread` with the right normalisation; a scale that is wrong by a factor f gives f squared more"""
USUAL = 0.7
"""what it is of CIFAR-10 networks with theirs: 0.67 to 0.79 of three"""
GOAL = 10.0
"""what the weighted BatchNorm term should come to at the start; DeepInversion's authors advise 1 to 10"""


def check_range(response: Response, info: ModelInfo) -> Iterator[Finding]:
    """Findings on range and normalisation, from the first BatchNorm's variances on pictures that are no data."""
    stated = f"mean {_numbers(info.mean)}, std {_numbers(info.std)}"
    spread = response.spread
    if spread is None:
        yield Finding("note", f"without BatchNorm nothing tells whether {stated} is what it was trained with")
    elif not math.isfinite(spread):
        yield Finding("error", "its first BatchNorm's variance is not finite on pictures in [0, 1]")
    elif not SPREAD[0] <= spread <= SPREAD[1]:
        fitting = _numbers(tuple(value * math.sqrt(spread / USUAL) for value in info.std))
        yield Finding(
            "warning",
            f"on pictures normalised by {stated} the first BatchNorm sees {spread:.3g} times the variances of its "
            f"training; --std {fitting} would fit, so those are probably not what it was trained with",
        )
    else:
        yield Finding(
            "fine", f"first BatchNorm's variances on pictures that are no data: {spread:.2f} of those in training"
        )


def check_learning(response: Response, info: ModelInfo) -> Iterator[Finding]:
    """Findings on whether images can be made: the loss must fall, and the labels' must."""
    noise, _, made = response.totals
    before, after = response.label_loss
    if response.layers:
        text = f"BatchNorm loss, all layers: {noise:.4g} on noise, {made:.4g} after {STEPS} generator steps"
        yield Finding("fine" if made < noise else "warning", text)
    chance = math.log(info.num_classes)
    text = f"label loss of {STEPS} generator steps: {before:.3g} to {after:.3g} (chance: {chance:.3g})"
    yield Finding("fine" if after < before else "warning", text)
    if response.classes == 1:
        yield Finding("warning", "puts every picture that is no data into one class; check that its weights are loaded")


def bn_weight(response: Response) -> float | None:
    """A weight of the BatchNorm term, 1, 2 or 5 times a power of ten, with which it starts near `GOAL`; None without
    BatchNorm.
    """
    made = response.totals[2]
    if not response.layers or not made or not math.isfinite(made):
        return None
    wanted = GOAL / made
    power = 10.0 ** math.floor(math.log10(wanted))
    return min((power * step for step in (1, 2, 5, 10)), key=lambda weight: abs(math.log(weight / wanted)))


class Fit(NamedTuple):
    """Whether a method takes a teacher."""

    method: str
    fits: bool
    how: str
    """flags that it wants, or why it does not"""
    hours: float | None
    """hours of the teacher's part of its default recipe here: generator steps and student steps; None: not known"""


def fits(net: FrozenNet, runtime: Runtime, response: Response, student: nn.Module) -> Iterator[Fit]:
    """Every method, tried on the teacher."""
    for name in METHODS:
        wanted = []
        config = default_config(name)
        if not net.targets and hasattr(config.method, "bn_weight") and config.method.bn_weight:
            config = replace(config, method=replace(config.method, bn_weight=0.0))
            wanted.append("--bn-weight 0")
        if FACTS[name].text:
            wanted.append("--class-names FILE --text clip, or --text orthogonal")
        if FACTS[name].real_images:
            wanted.append("--collected DATA (not data-free)")
        collected = CollectedImages.noise(net.info) if FACTS[name].real_images else None
        try:
            if FACTS[name].batchnorm == "yes" and not net.targets:
                raise UserError("it matches BatchNorm statistics, and there are none")
            with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):  # what it notes is of stand-ins
                method = make_method(config, load_method(name), net, student, runtime, collected)
        except UserError as error:
            yield Fit(name, False, str(error), None)
            continue
        yield Fit(name, True, "; ".join(wanted), _teacher_hours(method, response))


def _teacher_hours(method: Method, response: Response) -> float | None:
    config, plans = method.config, method.pools()
    if not any(plan.capacity for plan in plans):  # a stepwise method: its steps are no rounds
        return None
    rounds = sum(plan.rounds(epoch) * plan.synthesis_batch_size for plan in plans for epoch in range(config.epochs))
    answers = (config.epochs - config.warmup_epochs) * config.steps_per_epoch * config.batch_size
    seconds = rounds * config.synthesis_steps * response.gradient_seconds + answers * response.forward_seconds
    return seconds / 3600


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
