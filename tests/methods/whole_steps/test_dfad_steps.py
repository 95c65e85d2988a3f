"""DFAD's whole steps in float64, from the paper (arXiv:1912.11006, Algorithm 1) and its release's description, not from
the code.

Two rounds of two generator steps and two student steps, at an epoch where both rates have fallen once: the student is
in train mode in both kinds of step, images end in a tanh and a BatchNorm without weights.
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
import torch
from follow import Drawn, arena, descend, follow_round, note_statistics, note_student, state_of
from plain import Adam, Sgd, State, batch_norm, block, look, start_maps
from rounds import Rounds
from torch import Tensor
from torch.nn import functional as F
from toy_networks import INFO
from traces import Trace, check_at_work, check_same, check_seen

from dfkd_fast.methods.dfad import Dfad, DfadConfig

CONFIG = DfadConfig(
    epochs=4,
    synthesis_batch_size=10,
    batch_size=9,
    synthesis_steps=2,
    latent_dim=8,
    generator_width=16,
    student_lr_steps=(1,),
)
ROUNDS = ((1, 0), (1, 1))


def ours(config: DfadConfig) -> tuple[Trace, list[Any]]:
    place, trace, given = arena(), Trace(), []
    method = place.method(Dfad, config)
    rounds, trainer = Rounds(method, place.runtime), place.trainer(method)
    trainer.begin_epoch(1)
    for where in ROUNDS:
        start, drawn, steps = follow_round(rounds, *where, trace), Drawn(), iter(range(9))
        with drawn:
            trainer.steps(
                2,
                lambda terms, _: note_student(trace, f"student {where} step {next(steps)}", trainer, terms),  # noqa: B023
            )
        given.append((start, drawn.values))
    return trace, given


def view_of(net: State, latents: Tensor) -> Tensor:
    """What both networks see: x = BN(tanh(G(z)))."""
    x = start_maps(net, latents, prefix="decoder.", train=True)
    for number in (1, 2):
        x = block(net, x, number, prefix="decoder.", train=True)
    rgb = F.conv2d(x, net["decoder.layers.to_rgb.weight"], net["decoder.layers.to_rgb.bias"], padding=1)
    return batch_norm(net, "norm", rgb.tanh(), train=True)


def pixels_of(view: Tensor) -> Tensor:
    """As the grids show them: the data's mean and spread, what lies outside of [0, 1] cut."""
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (INFO.mean, INFO.std))
    return (view * std + mean).clamp(0, 1)


def published(given: list[Any]) -> Trace:
    """The same by hand: the generator raises, the student lowers the mean absolute difference of the logits."""
    place, trace = arena(), Trace()
    teacher, student = state_of(place.teacher), state_of(place.student)
    net = {name.removeprefix("generator."): value for name, value in given[0][0].state.items()}
    adam, sgd = Adam((0.9, 0.999)), Sgd(0.9, 5e-4)
    for where, (start, latents) in zip(ROUNDS, given, strict=True):
        key, drawn = f"round {where[0]}.{where[1]}", deque(start.drawn)
        for step in range(2):
            view = view_of(net, drawn.popleft())
            drawn.popleft()  # a crop of no pixels
            apart = look(student, view, train=True).logits - look(teacher, view).logits
            adv = -apart.abs().mean()
            descend(trace, f"{key} step {step}", {"adv": adv}, adv, net, adam, 1e-4, "generator.")
        trace[f"{key} images"] = pixels_of(view.detach())
        for step in range(2):
            with torch.no_grad():
                view = view_of(net, latents.popleft())
            latents.popleft()
            kd = (look(student, view, train=True).logits - look(teacher, view).logits.detach()).abs().mean()
            descend(trace, f"student {where} step {step}", {"kd": kd}, kd, student, sgd, 0.01)
            note_statistics(trace, f"student {where} step {step}", student)
    return trace


@functools.cache
def statement() -> tuple[Trace, Trace]:
    found, given = ours(CONFIG)
    return found, published(given)


def test_steps_are_the_published_ones() -> None:
    found, expected = statement()
    check_at_work(expected, "adv", "kd")
    check_same(found, expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("adv_weight", 1.01),
        ("generator_lr", 1.001e-3),
        ("student_lr_steps", (1, 1)),
        ("student_weight_decay", 4e-4),
        ("student_mode", "eval"),
        ("sampling", "eval"),
        ("generator_output", "batchnorm"),
    ],
)
def test_the_comparison_sees_a_change(field: str, value: Any) -> None:
    changed, _ = ours(replace(CONFIG, **{field: value}))
    check_seen(changed, statement()[1])
