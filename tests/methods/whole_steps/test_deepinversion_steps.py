"""DeepInversion's whole steps in float64, from the paper (arXiv:1912.08795) and descriptions of its code and of CMI's
re-implementation, which tables quote, not from the code.

A round without competition and one with it, Adam on the pixels; two student steps. Once with the re-implementation's
values, once with all that the original has beside them: priors, the first layer's factor, rising and falling rates, a
first stage at half the resolution.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from follow import (
    Start,
    arena,
    batch_of,
    descend,
    follow_round,
    follow_student,
    note_statistics,
    state_of,
    views,
)
from plain import Adam, Sgd, State, cosine_lr, cross_entropy, kl, look
from rounds import Rounds
from torch import Tensor
from toy_networks import INFO
from traces import Trace, check_at_work, check_same, check_seen

from dfkd_fast.methods.deepinversion import DeepInversion, DeepInversionConfig

SMALL: dict[str, Any] = {"epochs": 4, "warmup_epochs": 1, "synthesis_batch_size": 10, "synthesis_steps": 4}


@dataclass(frozen=True)
class Values:
    """What the two papers' settings differ in: weights of the terms, the pixels' Adam, the stages."""

    config: DeepInversionConfig
    priors: dict[str, float] = field(default_factory=dict)
    bn: float = 10.0
    first: float = 1.0
    adv: float = 1.0
    jitter: int = 4
    stages: tuple[int, ...] = (4,)
    rate: float = 0.1
    betas: tuple[float, float] = (0.5, 0.99)
    rising: int = 0


ORIGINAL = DeepInversionConfig(
    **SMALL | {"synthesis_steps": 5},
    bn_weight=0.01,
    first_bn_weight=10.0,
    adv_weight=0.2,
    tv_l2_weight=1e-4,
    tv_l1_weight=1e-3,
    l2_weight=1e-5,
    image_lr=0.25,
    image_betas=(0.5, 0.9),
    jitter=5,
    lr_warmup_steps=1,
    low_res_steps=2,
)
CASES = {
    "benchmark": Values(DeepInversionConfig(**SMALL)),
    "original": Values(
        ORIGINAL, {"tv_l2": 1e-4, "tv_l1": 1e-3, "l2": 1e-5}, 0.01, 10.0, 0.2, 5, (2, 3), 0.25, (0.5, 0.9), 1
    ),
}


def ours(config: DeepInversionConfig) -> tuple[Trace, list[Start]]:
    place, trace = arena(), Trace()
    method = place.method(DeepInversion, config)
    rounds = Rounds(method, place.runtime)
    starts = [follow_round(rounds, epoch, 0, trace) for epoch in (0, 1)]
    follow_student(place.trainer(method), 2, [batch_of(views(12, seed)) for seed in range(2)], trace)
    return trace, starts


def published(values: Values, starts: list[Start]) -> Trace:
    """The same by hand."""
    place, trace = arena(), Trace()
    teacher, student = state_of(place.teacher), state_of(place.student)
    for epoch, start in enumerate(starts):
        one_round(epoch, trace, values, start, (teacher, student))
    optimizer, rate = Sgd(0.9, 1e-4), cosine_lr(2, first=1, last=4, high=0.1, low=0.0)
    for step in range(2):
        key, view = f"student 2 step {step}", views(12, step)
        kd = kl(look(student, view, train=True).logits, look(teacher, view).logits, 20).mean()
        descend(trace, key, {"kd": kd}, kd, student, optimizer, rate)
        note_statistics(trace, key, student)
    return trace


def one_round(epoch: int, trace: Trace, values: Values, start: Start, networks: tuple[State, State]) -> None:
    """Each stage has an Adam of its own; the images are those of the last stage's lowest loss."""
    mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (INFO.mean, INFO.std))
    net, drawn, at = {"pixels": start.state["pixels"]}, deque(start.drawn), 0
    for stage, steps in enumerate(values.stages):
        adam, lowest, kept = Adam(values.betas), float("inf"), torch.empty(0)
        is_low = stage < len(values.stages) - 1
        for step in range(steps):
            view = net["pixels"]
            if is_low:
                view = (view[..., ::2, ::2] + view[..., 1::2, ::2] + view[..., ::2, 1::2] + view[..., 1::2, 1::2]) / 4
            rows, columns = drawn.popleft().tolist()
            view = view.roll((rows, columns), (2, 3))
            view = view.flip(3) if drawn.popleft() < 0.5 else view
            assert max(abs(rows), abs(columns)) <= (values.jitter // 2 if is_low else values.jitter)
            terms, loss = objective(view, values, networks, start.labels, competes=epoch >= 1)
            images = (net["pixels"].detach() * std + mean).clamp(0, 1)
            if loss.item() < lowest:
                lowest, kept = loss.item(), images
            key = f"round {epoch}.0 step {at}"
            descend(trace, key, terms, loss, net, adam, rate_at(step, steps, values))
            with torch.no_grad():  # colours that a picture can have
                net["pixels"].copy_(torch.maximum(torch.minimum(net["pixels"], (1 - mean) / std), -mean / std))
            trace[f"{key} weight pixels"] = net["pixels"].detach().clone()
            at += 1
    trace[f"round {epoch}.0 images"] = kept


def rate_at(step: int, steps: int, values: Values) -> float:
    """Linear up to the rate, then along a cosine to 0; without rising it is constant."""
    if step < values.rising:
        return values.rate * (step + 1) / values.rising
    if not values.rising:
        return values.rate
    return values.rate * (1 + math.cos(math.pi * (step - values.rising) / (steps - values.rising))) / 2


def objective(
    view: Tensor, values: Values, networks: tuple[State, State], labels: Tensor, *, competes: bool
) -> tuple[State, Tensor]:
    """Sections 3.2 and 3.3: cross-entropy, R_feature, R_compete, R_prior."""
    teacher, student = networks
    seen = look(teacher, view)
    terms = {"ce": cross_entropy(seen.logits, labels).mean()}
    norms = [
        (teacher[f"bn{i}.running_mean"] - m).norm() + (teacher[f"bn{i}.running_var"] - v).norm()
        for i, (m, v) in enumerate(seen.moments, start=1)
    ]
    terms["bn"] = values.first * norms[0] + norms[1] + norms[2]
    loss = terms["ce"] + values.bn * terms["bn"]
    if competes:  # 1 - JS at T = 3, as the authors compute it: of probabilities within [0.01, 0.99]
        p, q = (x.softmax(1) for x in (look(student, view).logits / 3, seen.logits / 3))
        m = ((p + q) / 2).clamp(0.01, 0.99)
        p, q = p.clamp(0.01, 0.99), q.clamp(0.01, 0.99)
        terms["adv"] = 1 - 0.5 * ((m * (m / p).log()).sum(1) + (m * (m / q).log()).sum(1)).mean()
        loss = loss + values.adv * terms["adv"]
    for name, weight in values.priors.items():
        terms[name] = prior(name, view)
        loss = loss + weight * terms[name]
    return terms, loss


def prior(name: str, view: Tensor) -> Tensor:
    """Each image's norm, or the differences of neighbours: beside, below, on both diagonals."""
    if name == "l2":
        return view.flatten(1).norm(dim=1).mean()
    pairs = (
        (view[..., :, 1:], view[..., :, :-1]),
        (view[..., 1:, :], view[..., :-1, :]),
        (view[..., 1:, :-1], view[..., :-1, 1:]),
        (view[..., 1:, 1:], view[..., :-1, :-1]),
    )
    return sum((a - b).abs().mean() if name == "tv_l1" else (a - b).norm() for a, b in pairs)  # type: ignore[return-value]


@functools.cache
def statement(name: str) -> tuple[Trace, Trace]:
    found, starts = ours(CASES[name].config)
    return found, published(CASES[name], starts)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_published_ones(name: str) -> None:
    found, expected = statement(name)
    check_at_work(expected, "ce", "bn", "adv", "kd", *CASES[name].priors)
    check_same(found, expected)


CHANGES: list[tuple[str, str, Any]] = [
    ("benchmark", "ce_weight", 1.01),
    ("benchmark", "bn_weight", 10.01),
    ("benchmark", "adv_weight", 1.01),
    ("benchmark", "image_betas", (0.5, 0.999)),
    ("benchmark", "clip", False),
    ("benchmark", "kd_temperature", 20.01),
    ("original", "first_bn_weight", 10.1),
    ("original", "tv_l1_weight", 1.01e-3),
    ("original", "tv_l2_weight", 1.01e-4),
    ("original", "l2_weight", 1.5e-5),
    ("original", "lr_warmup_steps", 0),
]


@pytest.mark.parametrize(("name", "which", "value"), CHANGES)
def test_the_comparison_sees_a_change(name: str, which: str, value: Any) -> None:
    changed, _ = ours(replace(CASES[name].config, **{which: value}))
    check_seen(changed, statement(name)[1])
