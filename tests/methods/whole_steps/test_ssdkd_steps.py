"""SSD-KD's whole steps in float64, from the paper (arXiv:2406.07876; where it is silent, Fast's release), not from the
code.

Two epochs of algorithm 1: a round, its images into the replay buffer, student steps on batches drawn by priority. What
the paper leaves open stands here as the defaults have it: T = 20, alpha = 0.6, beta = 0.4, gamma = 2, and Fast's mask
and weights. Priorities are stored in float32, so that Eqs. 4 to 6 are held to 1e-6, and all else to 1e-9: a step is
given the importance weights that were drawn.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from follow import (
    Start,
    arena,
    descend,
    follow_round,
    follow_student,
    normalised,
    note_statistics,
    state_of,
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
from torch import Tensor
from traces import Trace, check_at_work, check_mixed, check_same, check_seen

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.methods.base import SynthBatch
from dfkd_fast.methods.ssdkd import Ssdkd, SsdkdConfig
from dfkd_fast.pool.pool import PoolBatch

CONFIG = SsdkdConfig(
    epochs=6,
    warmup_epochs=1,
    synthesis_batch_size=10,
    synthesis_steps=3,
    buffer_size=25,
    batch_size=12,
    latent_dim=8,
    generator_width=8,
    start="fresh",
)
PRINTED = replace(
    CONFIG, adv_masked=False, label_source="teacher", priority_temperature=1.0, is_weighted_loss=False, bn_momentum=0.0
)
"""Eqs. 1, 2 and 4 and line 18 to the letter"""
EPOCHS = (1, 3)
FIRST = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2])
"""classes of what the buffer holds before"""


class Given(NamedTuple):
    """What was drawn: the rounds' starts, and the batches of the student."""

    starts: list[Start]
    batches: list[list[PoolBatch]]


def ours(config: SsdkdConfig) -> tuple[Trace, Trace, Given]:
    """Numbers to hold to 1e-9, those of the priorities, and what was drawn."""
    place, trace, priorities = arena(), Trace(), Trace()
    method = place.method(Ssdkd, config)
    trainer, rounds, given = place.trainer(method, capacity=25), Rounds(method, place.runtime), Given([], [])
    torch.manual_seed(0)
    trainer.store(SynthBatch(torch.rand(9, 3, 16, 16), FIRST, initial_priorities=torch.arange(9.0)))
    for epoch in EPOCHS:
        given.starts.append(follow_round(rounds, epoch, 0, trace))
        made = given.starts[-1].left
        trainer.store(made)
        trace |= {f"{epoch} initial_priorities": made.initial_priorities, f"{epoch} labels": made.labels.double()}
        given.batches.append([])
        for step in range(2):
            (batch,) = next(iter(trainer.inputs(1)))[0].values()
            given.batches[-1].append(batch)
            follow_student(trainer, epoch, [batch], trace, first=step)
            priorities[f"{epoch}.{step} weights"] = batch.is_weights.double()
            priorities[f"{epoch}.{step} leaves"] = (
                trainer.priorities[ImageSize.of(16)].leaves[: len(method.pool)].double()
            )
    return trace, priorities, given


def published(given: Given, *, printed: bool = False) -> tuple[Trace, Trace, list[float]]:
    """The same by hand, and the shares of images that the adversarial term counts."""
    place, trace, priorities, shares = arena(), Trace(), Trace(), []
    networks = state_of(place.teacher), state_of(place.student)
    labels, leaves = FIRST.clone(), (torch.arange(9.0).double() + 1e-6) ** 0.6  # Eq. 6: alpha, epsilon
    pool, optimizer, written = None, Sgd(momentum=0.9, decay=1e-4), 9
    for epoch, start, batches in zip(EPOCHS, *given, strict=True):
        net = {n.removeprefix("generator."): v for n, v in start.state.items() if n.startswith("generator.")}
        share = labels.bincount(minlength=4).double() / len(labels)  # n_c / |B|
        images, pool, counted = one_round(epoch, trace, net, start, networks, share, pool, printed)
        shares += counted
        with torch.no_grad():  # lines 12 and 13: w = 1
            teacher, student = (look(network, normalised(images)).logits for network in networks)
        initial_priorities, new = kl(student, teacher, 1 if printed else 20), teacher.argmax(1)
        trace |= {f"{epoch} initial_priorities": initial_priorities, f"{epoch} labels": new.double()}
        for delta, label in zip(initial_priorities, new, strict=True):  # lines 14 and 15: the oldest leave
            labels, leaves = (x if len(x) == 25 else torch.cat([x, x[:1]]) for x in (labels, leaves))
            labels[written % 25], leaves[written % 25] = label, (delta + 1e-6) ** 0.6
            written += 1
        for step, batch in enumerate(batches):
            rate = cosine_lr(epoch, first=1, last=6, high=0.2, low=2e-4)
            weights = (len(leaves) * leaves / leaves.sum())[batch.indices] ** -0.4  # Eq. 5: w = (N P)^-beta
            priorities[f"{epoch}.{step} weights"] = weights
            rows = student_step(f"student {epoch} step {step}", trace, optimizer, rate, networks, batch, printed)
            leaves = leaves.clone()
            for slot in batch.indices.unique():  # lines 19 and 20; an image that is drawn twice has the greater one
                drawn = batch.indices == slot
                leaves[slot] = ((weights[drawn] * rows[drawn] + 1e-6) ** 0.6).max()
            priorities[f"{epoch}.{step} leaves"] = leaves
    return trace, priorities, shares


def student_step(
    key: str,
    trace: Trace,
    optimizer: Sgd,
    rate: float,
    networks: tuple[State, State],
    batch: PoolBatch,
    printed: bool,
) -> Tensor:
    """Lines 18 to 22: the weighted loss; returns what each image's priority is made of."""
    teacher, student = networks
    logits = look(student, batch.images, train=True).logits, look(teacher, batch.images).logits
    rows = kl(*logits, 20)
    loss = rows.mean() if printed else (batch.is_weights.double() * rows).mean()
    initial_priorities = (kl(*logits, 1) if printed else rows).detach()
    descend(trace, key, {"kd": loss}, loss, student, optimizer, rate)
    note_statistics(trace, key, student)
    return initial_priorities


def one_round(
    epoch: int,
    trace: Trace,
    net: State,
    start: Start,
    networks: tuple[State, State],
    share: Tensor,
    pool: Moments | None,
    printed: bool,
) -> tuple[Tensor, Moments, list[float]]:
    """Lines 4 to 10: T_g steps on Eq. 2; the adversarial term comes an epoch before distillation, as in Fast."""
    teacher, student = networks
    optimizer, drawn, lowest, kept, shares = Adam((0.5, 0.999)), deque(start.drawn), float("inf"), torch.empty(0), []
    rates = {name: 1.5e-2 if name == "latents" else 5e-3 for name in net}
    for step in range(3):
        images = decode(net, net["latents"])
        view = normalised(crop_flip(images, drawn.popleft(), drawn.popleft(), pad=4))
        seen = look(teacher, view)
        confidence, predicted = seen.logits.detach().softmax(1).max(1)
        phi = (1 - share[predicted]) * (1 - confidence) ** 2  # Eq. 3
        assert phi.std() > 0.03
        assert share[predicted].std() > 0.05
        bn = bn_distance(teacher, seen.moments, None if printed else pool, 0.9)  # Eq. 1
        ce = (phi * cross_entropy(seen.logits, predicted if printed else start.labels)).mean()
        logits = look(student, view).logits
        agree = agreement(logits, seen.logits)
        shares.append(float(agree.mean()))
        adv = -((1 if printed else agree) * kl(logits, seen.logits)).mean()
        loss = 10 * bn + 0.5 * ce + 1.33 * adv  # Eq. 2
        if loss.item() < lowest:
            lowest, kept = loss.item(), images.detach()
        terms = {"bn": bn, "ce": ce, "adv": adv}
        descend(trace, f"round {epoch}.0 step {step}", terms, loss, net, optimizer, rates, "generator.")
    trace[f"round {epoch}.0 images"] = kept
    return kept, [(m.detach(), v.detach()) for m, v in mixed(seen.moments, pool, 0.9)], shares


@pytest.fixture(scope="module")
def statement() -> tuple[Trace, Trace, Trace, Trace]:
    found, priorities, given = ours(CONFIG)
    expected, wanted, shares = published(given)
    check_mixed(shares)
    return found, expected, priorities, wanted


def test_steps_are_the_published_ones(statement: tuple[Trace, ...]) -> None:
    check_at_work(statement[1], "bn", "ce", "adv", "kd")
    check_same(*statement[:2])


def test_equations_as_printed() -> None:
    found, priorities, given = ours(PRINTED)
    expected, wanted, _ = published(given, printed=True)
    check_same(found, expected)
    check_same(priorities, wanted, tolerance=1e-6)


def test_priorities_are_equations_4_to_6(statement: tuple[Trace, ...]) -> None:
    check_same(*statement[2:], tolerance=1e-6)


CHANGES: list[dict[str, Any]] = [
    {"ce_weight": 0.501},
    {"bn_weight": 10.01},
    {"adv_weight": 1.331},
    {"diversity": False},
    {"focus": 2.01},
    {"priority_temperature": 1.0},
    {"is_weighted_loss": False},
    {"kd_temperature": 20.01},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_comparison_sees_a_change(statement: tuple[Trace, ...], change: dict[str, Any]) -> None:
    check_seen(ours(replace(CONFIG, **change))[0], statement[1])


@pytest.mark.parametrize("change", [{"priority_exponent": 0.601}, {"is_exponent": 0.401}, {"priority_eps": 1e-3}])
def test_the_comparison_sees_other_priorities(statement: tuple[Trace, ...], change: dict[str, Any]) -> None:
    check_seen(ours(replace(CONFIG, **change))[1], statement[3], 1e-5)
