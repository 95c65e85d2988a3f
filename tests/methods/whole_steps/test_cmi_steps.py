"""CMI's whole steps in float64, from the paper (arXiv:2105.08584) and its release's description, not from the code.

Three rounds: one that warms up, with an empty bank of features, one with the adversarial term and a bank that is partly
filled, one with more in it than is drawn; two student steps. Weights, temperature and rates are written out as
published.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

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
)
from rounds import Rounds
from torch import Tensor
from traces import Trace, check_at_work, check_mixed, check_same, check_seen

from dfkd_fast import augment
from dfkd_fast.methods.cmi.method import Cmi, CmiConfig

CONFIG = CmiConfig(
    epochs=5,
    warmup_epochs=1,
    synthesis_batch_size=8,
    synthesis_steps=3,
    latent_dim=8,
    generator_width=8,
    head_features=5,
    bank_size=20,
    num_negatives=12,
)
ROUNDS = ((0, 0), (1, 0), (2, 0))


class Given(NamedTuple):
    starts: list[Start]
    boxes: deque[Tensor]
    """of the local views, top, left, height and width: worked out in float32, and so given to the statement"""


def ours(config: CmiConfig) -> tuple[Trace, Given]:
    place, trace, given = arena(), Trace(), Given([], deque())
    method = place.method(Cmi, config)
    rounds, draw_boxes = Rounds(method, place.runtime), augment.draw_boxes

    def watched(*args: Any, **options: Any) -> Tensor:
        given.boxes.append(draw_boxes(*args, **options))
        return given.boxes[-1]

    with patch.object(augment, "draw_boxes", watched):
        for where in ROUNDS:
            given.starts.append(follow_round(rounds, *where, trace))
            trace[f"bank {where}"] = method.bank.rows[: int(method.bank.written)].clone()
    follow_student(place.trainer(method), 2, [batch_of(views(12, seed)) for seed in range(2)], trace)
    return trace, given


def published(given: Given) -> tuple[Trace, list[float]]:
    """The same by hand, and the shares of images that the adversarial term counts."""
    place, trace, shares, bank, boxes = arena(), Trace(), [], torch.empty(0), deque(given.boxes)
    teacher, student = state_of(place.teacher), state_of(place.student)
    head = {name: value for name, value in given.starts[0].state.items() if name.startswith("head.")}
    lasting = Adam((0.9, 0.999))  # the head's, whose state lasts
    for (epoch, _), start in zip(ROUNDS, given.starts, strict=True):
        # the whole generator is drawn anew in each round
        net = {name: value for name, value in start.state.items() if name.startswith("generator.")}
        kept, counted = one_round(epoch, trace, net, (head, lasting), start, (teacher, student), bank, boxes)
        shares += counted
        bank = torch.cat([bank, kept]) if len(bank) else kept
        bank = torch.cat([bank[20:], bank[len(bank) - 20 : 20]]) if len(bank) > 20 else bank  # a ring of 20 rows
        trace[f"bank {(epoch, 0)}"] = bank
    optimizer, rate = Sgd(0.9, 1e-4), cosine_lr(2, first=1, last=5, high=0.1, low=0.0)
    for step in range(2):
        key, view = f"student 2 step {step}", views(12, step)
        kd = kl(look(student, view, train=True).logits, look(teacher, view).logits, 20).mean()
        descend(trace, key, {"kd": kd}, kd, student, optimizer, rate)
        note_statistics(trace, key, student)
    return trace, shares


def one_round(
    epoch: int,
    trace: Trace,
    net: State,
    lasting: tuple[State, Adam],
    start: Start,
    networks: tuple[State, State],
    bank: Tensor,
    boxes: deque[Tensor],
) -> tuple[Tensor, list[float]]:
    """g steps on L_inversion + 0.8 L_cr; the features of the images that are kept, and the mask's shares."""
    (head, head_adam), (teacher, student), adam = lasting, networks, Adam((0.5, 0.999))
    drawn, lowest, kept, features, shares = deque(start.drawn), float("inf"), torch.empty(0), torch.empty(0), []
    for step in range(3):
        key = f"round {epoch}.0 step {step}"
        images = decode(net, net["generator.latents"], prefix="generator.decoder.")
        view = normalised(crop_flip(images, drawn.popleft(), drawn.popleft(), pad=4))
        seen = look(teacher, view)
        terms = {"ce": cross_entropy(seen.logits, start.labels).mean(), "bn": bn_distance(teacher, seen.moments)}
        loss = 0.5 * terms["ce"] + 1.0 * terms["bn"]
        if epoch >= 1:
            logits = look(student, view).logits
            agree = agreement(logits, seen.logits)
            terms["adv"] = -(agree * kl(logits, seen.logits)).mean()
            loss = loss + 0.5 * terms["adv"]
            shares.append(float(agree.mean()))
        box = boxes.popleft()
        for own, *draws in zip(box, drawn.popleft(), drawn.popleft(), drawn.popleft(), strict=True):
            torch.testing.assert_close(own, box_of(*draws))
        cut = torch.stack([bilinear(image, *own.double()) for image, own in zip(images, box, strict=True)])
        local = normalised(crop_flip(cut, drawn.popleft(), drawn.popleft(), pad=0))
        part, whole = look(teacher, local).means, seen.means.detach()  # Eq. 4: of what every BatchNorm reads
        stored = bank[drawn.popleft()[: len(bank)].argsort()[:12]] if len(bank) else drawn.popleft()[:0, None]
        terms["contrastive"] = contrastive(head, part, whole, stored)
        loss = loss + 0.8 * terms["contrastive"]
        if loss.item() < lowest:
            lowest, kept, features = loss.item(), images.detach(), torch.cat([part.detach(), whole], dim=1)
        both = descend(Trace(), key, {}, loss, net | head, Adam(), 0.0)
        for group, optimizer in ((net, adam), (head, head_adam)):
            optimizer.step(group, {name: both[name] for name in group if name in both}, 1e-3)
        trace |= {f"{key} {name}": value.detach() for name, value in terms.items()}
        trace |= {f"{key} gradient {name}": value for name, value in both.items()}
        trace |= {f"{key} weight {name}": (net | head)[name].detach().clone() for name in both}
    trace[f"round {epoch}.0 images"] = kept
    return features, shares


def contrastive(head: State, part: Tensor, whole: Tensor, stored: Tensor) -> Tensor:
    """L_cr: cross-entropy of each part with the wholes, tau = 0.1; new and stored images are averaged apart."""
    width = part.shape[1]
    queries = project(head, torch.cat([part, *([stored[:, :width]] if len(stored) else [])]))
    keys = project(head, torch.cat([whole, *([stored[:, width:]] if len(stored) else [])])).detach()
    losses = cross_entropy(queries @ keys.T / 0.1, torch.arange(len(queries)))
    new, old = losses[: len(part)], losses[len(part) :]
    return new.mean() + old.mean() if len(old) else new.mean()


def project(head: State, features: Tensor) -> Tensor:
    """Linear, ReLU, Linear, of length 1."""
    inner = (features @ head["head.0.weight"].T + head["head.0.bias"]).clamp(min=0)
    outer = inner @ head["head.2.weight"].T + head["head.2.bias"]
    return outer / outer.square().sum(1, keepdim=True).sqrt()


def box_of(areas: Tensor, ratios: Tensor, place: Tensor) -> Tensor:
    """Of 0.25 to 1 of the area and an aspect ratio from 3/4 to 4/3, the first of ten that fits."""
    size = torch.ones(2)
    for area, ratio in reversed(list(zip(0.25 + 0.75 * areas, (4 / 3) ** (2 * ratios - 1), strict=True))):
        drawn = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()])
        size = drawn if bool((drawn <= 1).all()) else size
    return torch.cat([place * (1 - size), size])


def bilinear(image: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Output pixel i of n lies at (i + 0.5) / n of the box; edges are repeated."""
    side = image.shape[-1]
    at = (torch.arange(side).double() + 0.5) / side
    weights = []
    for first, size in ((top, height), (left, width)):
        place = ((first + size * at) * side - 0.5).clamp(0, side - 1)
        weights.append((1 - (place[:, None] - torch.arange(side)).abs()).clamp(min=0))
    return weights[0] @ image @ weights[1].T


@pytest.fixture(scope="module")
def statement() -> tuple[Trace, Trace]:
    found, given = ours(CONFIG)
    expected, shares = published(given)
    check_mixed(shares)
    return found, expected


def test_steps_are_the_published_ones(statement: tuple[Trace, Trace]) -> None:
    check_at_work(statement[1], "ce", "bn", "adv", "contrastive", "kd")
    check_same(*statement)


CHANGES: list[dict[str, Any]] = [
    {"ce_weight": 0.501},
    {"bn_weight": 1.01},
    {"adv_weight": 0.501},
    {"contrastive_weight": 0.801},
    {"contrastive_temperature": 0.1001},
    {"local_scale": 0.3},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_comparison_sees_a_change(statement: tuple[Trace, Trace], change: dict[str, Any]) -> None:
    check_seen(ours(replace(CONFIG, **change))[0], statement[1])
