"""Fast's whole steps in float64, from the paper (arXiv:2112.06253) and its release's description, not from the code.

Two rounds, without and with the adversarial term, each from a learned start that the outer Adam then moves; two student
steps. Weights, temperature and rates are written out as published for Fast-5.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
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
    normalised,
    note_statistics,
    state_of,
    views,
)
from plain import (
    Adam,
    Moments,
    Sgd,
    State,
    agreement,
    bn_distance,
    cosine_lr,
    crop_flip,
    cross_entropy,
    decode,
    kl,
    look,
    mixed,
)
from rounds import Rounds
from traces import Trace, check_at_work, check_mixed, check_same, check_seen

from dfkd_fast.methods.fast import Fast, FastConfig

CONFIG = FastConfig(
    epochs=6, warmup_epochs=2, synthesis_batch_size=10, synthesis_steps=5, latent_dim=8, generator_width=8
)
REPTILE = replace(CONFIG, start="reptile")
META = "start.meta_parameters."


def ours(config: FastConfig) -> tuple[Trace, list[Start]]:
    place, trace = arena(), Trace()
    method = place.method(Fast, config)
    rounds, starts = Rounds(method, place.runtime), []
    for epoch in range(2):
        starts.append(follow_round(rounds, epoch, 0, trace, ("generator",)))
        learned = method.start.weights.named_parameters()
        trace |= {f"after {epoch} {META}{name}": value.detach().clone() for name, value in learned}
    follow_student(place.trainer(method), 3, [batch_of(views(12, seed)) for seed in range(2)], trace)
    return trace, starts


def published(starts: list[Start], meta: str = "fomaml") -> tuple[Trace, list[float]]:
    """The same by hand, and the shares of images that the adversarial term counts."""
    place, trace, shares = arena(), Trace(), []
    teacher, student = state_of(place.teacher), state_of(place.student)
    learned = {name.removeprefix(META): v for name, v in starts[0].state.items() if name.startswith(META)}
    outer, pool = Adam((0.5, 0.999)), None
    for epoch, start in enumerate(starts):
        adapted = {
            name: value.detach().clone().requires_grad_("running" not in name) for name, value in learned.items()
        }
        adapted["latents"] = start.state["generator.latents"]  # drawn anew
        sums, pool, counted = one_round(epoch, trace, adapted, start, (teacher, student), pool)
        shares += counted
        if meta == "reptile":
            sums = {name: 67 * (learned[name] - adapted[name].detach()) for name in sums}
        # the latents are no part of what is learned
        outer.step(learned, sums, {name: 0.0 if name == "latents" else 5 * 3e-3 for name in sums})
        trace |= {f"after {epoch} {META}{name}": learned[name].detach().clone() for name in sums}
    optimizer, rate = Sgd(momentum=0.9, decay=1e-4), cosine_lr(3, first=2, last=6, high=0.2, low=2e-4)
    for step in range(2):
        key, view = f"student 3 step {step}", views(12, step)
        kd = kl(look(student, view, train=True).logits, look(teacher, view).logits, 20).mean()
        descend(trace, key, {"kd": kd}, kd, student, optimizer, rate)
        note_statistics(trace, key, student)
    return trace, shares


def one_round(
    epoch: int, trace: Trace, net: State, start: Start, networks: tuple[State, State], pool: Moments | None
) -> tuple[State, Moments, list[float]]:
    """k inner steps from the start (algorithm 1): the sum of their gradients, and the running statistics behind them.
    The adversarial term comes one epoch before distillation.
    """
    teacher, student = networks
    optimizer, drawn, lowest, kept = Adam((0.5, 0.999)), deque(start.drawn), float("inf"), torch.empty(0)
    rates = {name: 1e-2 if name == "latents" else 3e-3 for name in net}
    sums: State = {}
    shares = []
    for step in range(5):
        images = decode(net, net["latents"])
        view = normalised(crop_flip(images, drawn.popleft(), drawn.popleft(), pad=4))
        seen = look(teacher, view)
        ce, bn = cross_entropy(seen.logits, start.labels).mean(), bn_distance(teacher, seen.moments, pool, 0.9)
        terms, loss = {"ce": ce, "bn": bn}, 0.5 * ce + 10 * bn
        if epoch + 1 >= 2:
            logits = look(student, view).logits
            agree = agreement(logits, seen.logits)
            terms["adv"] = -(agree * kl(logits, seen.logits)).mean()
            loss = loss + 1.33 * terms["adv"]
            shares.append(float(agree.mean()))
        if loss.item() < lowest:
            lowest, kept = loss.item(), images.detach()
        grads = descend(trace, f"round {epoch}.0 step {step}", terms, loss, net, optimizer, rates, "generator.")
        sums = {name: sums.get(name, 0) + grad for name, grad in grads.items()}
    trace[f"round {epoch}.0 images"] = kept
    return sums, [(m.detach(), v.detach()) for m, v in mixed(seen.moments, pool, 0.9)], shares


@pytest.fixture(scope="module")
def statement() -> tuple[Trace, Trace]:
    found, starts = ours(CONFIG)
    expected, shares = published(starts)
    check_mixed(shares)
    return found, expected


def test_steps_are_the_published_ones(statement: tuple[Trace, Trace]) -> None:
    check_at_work(statement[1], "ce", "bn", "adv", "kd")
    check_same(*statement)


def test_reptile_steps_are_the_published_ones() -> None:
    found, starts = ours(REPTILE)
    check_same(found, published(starts, "reptile")[0])


CHANGES: list[dict[str, Any]] = [
    {"ce_weight": 0.501},
    {"bn_weight": 10.01},
    {"adv_weight": 1.331},
    {"bn_momentum": 0.901},
    {"generator_lr": 3.001e-3},
    {"latent_lr": 1.001e-2},
    {"meta_lr": 1.501e-2},
    {"kd_temperature": 20.01},
    {"student_lr_min": 3e-4},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_comparison_sees_a_change(statement: tuple[Trace, Trace], change: dict[str, Any]) -> None:
    check_seen(ours(replace(CONFIG, **change))[0], statement[1])
