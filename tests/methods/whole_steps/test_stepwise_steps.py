"""DAFL's, ZSKT's and DFQ's whole steps in float64, from the description of the re-implementations that tables quote
(CMI's repository), not from the code.

Two rounds of two generator steps and two student steps each: one generator and one Adam that last, images made on the
spot by the generator at rest, no augmentation. Weights and rates are written out as published.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from follow import (
    Drawn,
    arena,
    descend,
    follow_round,
    normalised,
    note_statistics,
    note_student,
    state_of,
)
from plain import Adam, Seen, Sgd, State, bn_distance, cosine_lr, cross_entropy, decode, kl, look
from rounds import Rounds
from torch import Tensor
from traces import Trace, check_at_work, check_same, check_seen

from dfkd_fast.methods.dafl import Dafl, DaflConfig
from dfkd_fast.methods.dfq import Dfq, DfqConfig
from dfkd_fast.methods.stepwise import StepwiseConfig
from dfkd_fast.methods.zskt import Zskt, ZsktConfig

SMALL: dict[str, Any] = {
    "epochs": 4,
    "synthesis_batch_size": 10,
    "batch_size": 9,
    "synthesis_steps": 2,
    "latent_dim": 8,
    "generator_width": 16,
}


def balance(logits: Tensor) -> Tensor:
    """sum_c p_c log p_c of the mean prediction: minus its entropy."""
    p = logits.softmax(1).mean(0)
    return (p * p.log()).sum()


def dafl(seen: Seen, _teacher: State, _student: Seen) -> tuple[State, Tensor]:
    """L_oh + alpha L_a + beta L_ie."""
    ce = cross_entropy(seen.logits, seen.logits.argmax(1)).mean()
    terms = {"ce": ce, "act": -seen.pooled.abs().mean(), "balance": balance(seen.logits)}
    return terms, ce + 0.001 * terms["act"] + 20 * terms["balance"]


def zskt(seen: Seen, _teacher: State, student: Seen) -> tuple[State, Tensor]:
    """-KL(teacher || student), on all images."""
    adv = -kl(student.logits, seen.logits).mean()
    return {"adv": adv}, adv


def dfq(seen: Seen, teacher: State, student: Seen) -> tuple[State, Tensor]:
    ce = cross_entropy(seen.logits, seen.logits.argmax(1)).mean()
    terms = {"ce": ce, "bn": bn_distance(teacher, seen.moments), "balance": balance(seen.logits)}
    terms["adv"] = -kl(student.logits, seen.logits).mean()
    return terms, ce + terms["bn"] + 20 * terms["balance"] + terms["adv"]


def attention(student: Seen, teacher: Seen) -> Tensor:
    """Of both stages: the mean squares over channels, each map of length 1."""
    total = torch.zeros(()).double()
    for own, other in zip(student.maps[:2], teacher.maps[:2], strict=True):
        maps = [x.square().mean(1).flatten(1) for x in (own, other)]
        lengths = [x / x.square().sum(1, keepdim=True).sqrt() for x in maps]
        total = total + (lengths[0] - lengths[1]).square().mean()
    return total


@dataclass(frozen=True)
class Case:
    method: Any
    config: StepwiseConfig
    loss: Callable[[Seen, State, Seen], tuple[State, Tensor]]
    beta: float = 0.0
    """of ZSKT's attention transfer; 250 in the original, 0 in the re-implementation"""


CASES = {
    "dafl": Case(Dafl, DaflConfig(**SMALL), dafl),
    "zskt": Case(Zskt, ZsktConfig(**SMALL), zskt),
    "zskt-attention": Case(Zskt, ZsktConfig(**SMALL, attention_weight=250.0), zskt, beta=250.0),
    "dfq": Case(Dfq, DfqConfig(**SMALL), dfq),
}
ROUNDS = ((1, 0), (1, 1))


def ours(case: Case) -> tuple[Trace, list[Any]]:
    place, trace, given = arena(), Trace(), []
    method = place.method(case.method, case.config)
    rounds, trainer = Rounds(method, place.runtime), place.trainer(method)
    trainer.begin_epoch(1)
    for where in ROUNDS:
        method.train()
        start, drawn, steps = follow_round(rounds, *where, trace), Drawn(), iter(range(9))
        with drawn:
            trainer.steps(
                2,
                lambda terms, _: note_student(trace, f"student {where} step {next(steps)}", trainer, terms),  # noqa: B023
            )
        given.append((start, drawn.values))
    return trace, given


def published(case: Case, given: list[Any]) -> Trace:
    """The same by hand."""
    place, trace = arena(), Trace()
    teacher, student = state_of(place.teacher), state_of(place.student)
    net = {name.removeprefix("generator."): value for name, value in given[0][0].state.items()}
    adam, sgd, rate = Adam((0.5, 0.999)), Sgd(0.9, 1e-4), cosine_lr(1, first=0, last=4, high=0.1, low=0.0)
    for where, (start, latents) in zip(ROUNDS, given, strict=True):
        key, drawn = f"round {where[0]}.{where[1]}", deque(start.drawn)
        for step in range(2):
            images = decode(net, drawn.popleft(), prefix="")
            drawn.popleft()  # a crop of no pixels
            view = normalised(images)
            terms, loss = case.loss(look(teacher, view), teacher, look(student, view))
            descend(trace, f"{key} step {step}", terms, loss, net, adam, 1e-3, "generator.")
        trace[f"{key} images"] = images.detach()
        for step in range(2):
            with torch.no_grad():
                view = normalised(decode(net, latents.popleft(), prefix="", train=False))
            latents.popleft()
            seen, own = look(teacher, view), look(student, view, train=True)
            kd = kl(own.logits, seen.logits, 1.0).mean()
            terms = {"kd": kd} | ({"attention": attention(own, seen)} if case.beta else {})
            loss = kd + case.beta * terms.get("attention", 0.0)
            descend(trace, f"student {where} step {step}", terms, loss, student, sgd, rate)
            note_statistics(trace, f"student {where} step {step}", student)
    return trace


@functools.cache
def statement(name: str) -> tuple[Trace, Trace]:
    found, given = ours(CASES[name])
    return found, published(CASES[name], given)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_published_ones(name: str) -> None:
    found, expected = statement(name)
    check_at_work(expected, *{key.split()[-1] for key, value in expected.items() if value.dim() == 0})
    check_same(found, expected)


CHANGES = [
    ("dafl", "ce_weight", 1.01),
    ("dafl", "act_weight", 0.0011),
    ("dafl", "balance_weight", 20.1),
    ("dafl", "sampling", "train"),
    ("zskt", "adv_weight", 1.01),
    ("zskt", "generator_lr", 1.001e-3),
    ("zskt", "kd_temperature", 1.01),
    ("zskt-attention", "attention_weight", 250.1),
    ("dfq", "ce_weight", 1.01),
    ("dfq", "bn_weight", 1.01),
    ("dfq", "balance_weight", 20.1),
    ("dfq", "adv_weight", 1.01),
    ("dfq", "student_lr_min", 1e-4),
]


@pytest.mark.parametrize(("name", "field", "value"), CHANGES)
def test_the_comparison_sees_a_change(name: str, field: str, value: Any) -> None:
    case = CASES[name]
    changed, _ = ours(replace(case, config=replace(case.config, **{field: value})))
    check_seen(changed, statement(name)[1])
