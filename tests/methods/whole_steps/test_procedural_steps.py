"""Procedural's whole steps in float64, written from what its page says, not from the code: a walk towards another
class by Adam on the pixels, the pictures before and after the crossing; two student steps.
"""

from __future__ import annotations

import functools
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
from plain import Adam, Sgd, State, cosine_lr, cross_entropy, kl, look
from rounds import Rounds
from torch import Tensor
from traces import Trace, check_at_work, check_same, check_seen

from dfkd_fast.methods.procedural import Procedural, ProceduralConfig

PAIRS, PLAIN, STEPS = 4, 6, 6
CONFIG = ProceduralConfig(
    epochs=5,
    warmup_rounds=1,
    rounds=1,
    synthesis_batch_size=2 * PAIRS + PLAIN,
    boundary_pairs=PAIRS,
    synthesis_steps=STEPS,
    boundary_step=0.006,
    candidates=2,
    randaugment_operations=0,
)


def ours(config: ProceduralConfig) -> tuple[Trace, list[Start]]:
    place, trace = arena(), Trace()
    torch.manual_seed(11)
    rounds = Rounds(place.method(Procedural, config), place.runtime)
    starts = [follow_round(rounds, epoch, 0, trace) for epoch in (0, 1)]
    follow_student(place.trainer(rounds.method), 2, [batch_of(views(12, seed)) for seed in range(2)], trace)
    return trace, starts


def published(starts: list[Start]) -> tuple[Trace, int]:
    """The same by hand, and how many pictures have crossed."""
    place, trace, crossings = arena(), Trace(), 0
    teacher, student = state_of(place.teacher), state_of(place.student)
    for epoch, start in enumerate(starts):
        crossings += walk(epoch, trace, start, teacher)
    sgd, rate = Sgd(0.9, 1e-4), cosine_lr(2, first=1, last=5, high=0.1, low=2e-4)
    for step in range(2):
        key, view = f"student 2 step {step}", views(12, step)
        kd = kl(look(student, view, train=True).logits, look(teacher, view).logits, 20).mean()
        descend(trace, key, {"kd": kd}, kd, student, sgd, rate)
        note_statistics(trace, key, student)
    return trace, crossings


def walk(epoch: int, trace: Trace, start: Start, teacher: State) -> int:
    net, adam = {"pixels": start.state["pixels"]}, Adam()
    paths: list[Tensor] = []
    inside: list[Tensor] = []
    for step in range(STEPS):
        logits = look(teacher, normalised(net["pixels"])).logits
        paths.append(net["pixels"].detach().clone())
        inside.append(logits.argmax(1) == start.labels)
        ce = cross_entropy(logits, start.labels).mean()
        key = f"round {epoch}.0 step {step}"
        descend(trace, key, {"ce": ce}, ce, net, adam, 0.006)
        with torch.no_grad():
            net["pixels"].clamp_(0, 1)
        trace[f"{key} weight pixels"] = net["pixels"].detach().clone()
    before, after, crossings = [], [], 0
    for row in range(PAIRS):
        arrived = [step for step in range(STEPS) if inside[step][row]]
        crossings += bool(arrived)
        first = arrived[0] if arrived else STEPS - 1
        last_outside = first - 1 if arrived else STEPS - 1
        assert last_outside >= 0, "a walk begins outside"
        before.append(paths[last_outside][row])
        after.append(paths[first][row])
    drawn = start.left.images[:PLAIN]
    trace[f"round {epoch}.0 images"] = torch.cat([drawn, torch.stack(before), torch.stack(after)])
    return crossings


@functools.cache
def statement() -> tuple[Trace, Trace, int]:
    found, starts = ours(CONFIG)
    expected, crossings = published(starts)
    return found, expected, crossings


def test_steps_are_those_of_the_page() -> None:
    found, expected, crossings = statement()
    assert 0 < crossings < 2 * PAIRS, "some cross, and others do not"
    check_at_work(expected, "ce", "kd")
    check_same(found, expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [("boundary_step", 0.00601), ("ce_weight", 2.0), ("kd_temperature", 20.01), ("synthesis_steps", 5)],
)
def test_the_comparison_sees_a_change(field: str, value: Any) -> None:
    changed, _ = ours(replace(CONFIG, **{field: value}))
    check_seen(changed, statement()[1])
