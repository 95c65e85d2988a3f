"""SpaceshipNet's whole steps in float64, from the paper (CVPR 2023) and its release's description, not from the code.

Two rounds of one lasting generator, whose maps are kept with the images; then student steps on images that the
generator, at rest, makes of exchanged maps, taken at each of its three places. Weights, temperature and rates are
written out as published. Maps are stored in float16, and given to the step so.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from follow import (
    Drawn,
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
    Sgd,
    State,
    block,
    bn_distance,
    class_map_distance,
    cosine_lr,
    crop_flip,
    cross_entropy,
    decode_maps,
    grad_cam_distance,
    kl,
    look,
    start_maps,
)
from rounds import Rounds
from torch import Tensor
from traces import Trace, check_at_work, check_same, check_seen

from dfkd_fast.methods.spaceshipnet import SpaceshipNet, SpaceshipNetConfig
from dfkd_fast.pool.pool import PoolBatch
from dfkd_fast.rng import SHARED

CONFIG = SpaceshipNetConfig(epochs=4, synthesis_batch_size=10, synthesis_steps=3, latent_dim=8, generator_width=8)
STEPS = 5


class Given(NamedTuple):
    starts: list[Start]
    cuts: list[int]
    """where the maps of a student step are taken"""
    drawn: deque[Tensor]
    """in the student steps"""


def ours(config: SpaceshipNetConfig) -> tuple[Trace, Given]:
    place, trace, drawn = arena(), Trace(), Drawn()
    method = place.method(SpaceshipNet, config)
    rounds, trainer = Rounds(method, place.runtime), place.trainer(method)
    starts = [follow_round(rounds, epoch, 0, trace) for epoch in (0, 1)]
    kept = starts[-1].left
    trace |= {name: value.double() for name, value in kept.extras.items()}
    batch, cuts = PoolBatch(kept.images, kept.labels, torch.arange(10), kept.extras), []
    SHARED.seed(0)
    torch.manual_seed(0)
    with drawn:
        for step in range(STEPS):
            follow_student(trainer, 1, [batch], trace, first=step)
            cuts.append(method.cut)
    return trace, Given(starts, cuts, drawn.values)


def published(given: Given) -> tuple[Trace, list[bool]]:
    """The same by hand, and which student steps exchange channels."""
    place, trace = arena(), Trace()
    teacher, student = state_of(place.teacher), state_of(place.student)
    net = {n.removeprefix("generator."): v for n, v in given.starts[0].state.items() if "decoder" in n}
    for epoch, start in enumerate(given.starts):
        maps = one_round(epoch, trace, net, start, teacher)
    maps = [x.half().double() for x in maps]
    trace |= {f"maps{cut}": x for cut, x in enumerate(maps)}
    optimizer, rate, drawn = Sgd(0.9, 1e-4), cosine_lr(1, first=0, last=4, high=0.1, low=0.0), deque(given.drawn)
    exchanged = []
    for step, cut in enumerate(given.cuts):
        keys, chance = drawn.popleft(), drawn.popleft()
        exchanged.append(bool(chance < 0.7))
        with torch.no_grad():
            mixed = exchange(maps[cut], keys) if exchanged[-1] else maps[cut]
            images = decode_maps(net, mixed, prefix="decoder.", train=False, after=cut)
            view = normalised(crop_flip(images, drawn.popleft(), drawn.popleft(), pad=4))
        student_step(f"student 1 step {step}", trace, optimizer, rate, (teacher, student), view)
    return trace, exchanged


def exchange(maps: Tensor, keys: Tensor) -> Tensor:
    """Sample i keeps the half of its channels that have the lowest keys; the others are those of sample N - 1 - i."""
    count, channels = maps.shape[:2]
    made = maps.flip(0).clone()
    for i in range(count):
        own = keys[i].argsort()[: channels // 2]
        made[i, own] = maps[i, own]
    return made


def one_round(epoch: int, trace: Trace, net: State, start: Start, teacher: State) -> list[Tensor]:
    """Cross-entropy and BN statistics, no adversary; latents stay as they were drawn. Returns the best step's maps."""
    optimizer, drawn, lowest, kept = Adam((0.5, 0.999)), deque(start.drawn), float("inf"), torch.empty(0)
    best: list[Tensor] = []
    labels = torch.arange(10) % 4
    for step in range(3):
        maps = [start_maps(net, start.state["latents"], prefix="decoder.", train=True)]
        for number in (1, 2):
            maps.append(block(net, maps[-1], number, prefix="decoder.", train=True))
        images = decode_maps(net, maps[-1], prefix="decoder.", train=True, after=2)
        seen = look(teacher, normalised(crop_flip(images, drawn.popleft(), drawn.popleft(), pad=4)))
        terms = {"ce": cross_entropy(seen.logits, labels).mean(), "bn": bn_distance(teacher, seen.moments)}
        loss = 0.5 * terms["ce"] + 1.0 * terms["bn"]
        if loss.item() < lowest:
            lowest, kept, best = loss.item(), images.detach(), [x.detach() for x in maps]
        descend(trace, f"round {epoch}.0 step {step}", terms, loss, net, optimizer, 1e-3, "generator.")
    trace[f"round {epoch}.0 images"] = kept
    return best


def student_step(
    key: str, trace: Trace, optimizer: Sgd, rate: float, networks: tuple[State, State], view: Tensor
) -> None:
    """KL at T = 30 whose mean is over images and classes, and mSARC: class maps, and the Grad-CAMs of both stages."""
    teacher, student = networks
    other, own = look(teacher, view), look(student, view, train=True)
    terms = {
        "kd": kl(own.logits, other.logits.detach(), 30).mean() / 4,
        "cam": class_map_distance(student, own, teacher, other),
        "grad_cam": grad_cam_distance(own, other, 0) + grad_cam_distance(own, other, 1),
    }
    descend(trace, key, terms, terms["kd"] + terms["cam"] + terms["grad_cam"], student, optimizer, rate)
    note_statistics(trace, key, student)


@pytest.fixture(scope="module")
def statement() -> tuple[Trace, Trace]:
    found, given = ours(CONFIG)
    expected, exchanged = published(given)
    assert set(given.cuts) == {0, 1, 2}
    assert set(exchanged) == {True, False}
    return found, expected


def test_steps_are_the_published_ones(statement: tuple[Trace, Trace]) -> None:
    check_at_work(statement[1], "ce", "bn", "kd", "cam", "grad_cam")
    check_same(*statement)


CHANGES: list[dict[str, Any]] = [
    {"ce_weight": 0.501},
    {"bn_weight": 1.01},
    {"generator_lr": 1.001e-3},
    {"exchange_probability": 0.0},
    {"cam_weight": 1.01},
    {"grad_cam_weight": 1.01},
    {"grad_cam_stages": 1},
    {"kd_temperature": 30.1},
    {"student_weight_decay": 2e-4},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_comparison_sees_a_change(statement: tuple[Trace, Trace], change: dict[str, Any]) -> None:
    check_seen(ours(replace(CONFIG, **change))[0], statement[1])
