"""MUSE's whole steps in float64, from the paper (arXiv:2411.17046) and what it builds on, not from the code.

Two image sizes with a generator each (MUSE; one of them is MUSE-S): for either a round that warms up and one that does
not, then two student steps, each on a batch of both. Weights and rates are written out as published.
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
    State,
    agreement,
    batch_norm,
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

from dfkd_fast.methods.muse.method import Muse, MuseConfig, MuseS, MuseSConfig

CONFIG = MuseConfig(
    epochs=5,
    warmup_epochs=1,
    image_sizes=(12, 16),
    batch_shares=(3, 2),
    synthesis_batch_size=20,
    batch_size=20,
    synthesis_steps=3,
    noise_features=12,
    generator_width=8,
    inner_radius=0.015,
    outer_radius=0.03,
    full_images=500,
)
SINGLE = MuseSConfig(
    **{**CONFIG.__dict__, "image_sizes": (12,), "batch_shares": (1,), "synthesis_batch_size": 12, "batch_size": 12}
)
ON_TEACHER = replace(CONFIG, aed_network="teacher", outer_radius=0.5)
"""L_aed as the sentence above Eq. 11 has it, which takes class embeddings in the teacher's space: section 3.3's other
choice, the mean of the teacher's features of a class in the first batch. These images lie ten times as far from their
class as two classes from each other, and the radius is one that opens the hinge.
"""
LABELS = torch.tensor([0, 3, 1, 2, 2, 0, 1, 3, 1, 1, 0, 2])


def built(config: MuseSConfig) -> tuple[Any, Muse]:
    """Embeddings of CLIP's scale, as the radii are given for; features start near enough for both hinges to be open."""
    place = arena(text="class-centre" if config.aed_network == "teacher" else "orthogonal")
    method = place.method(Muse if len(config.image_sizes) > 1 else MuseS, config)
    with torch.no_grad():
        for value in method.embedding.side.parameters():
            value *= 0.2
    return place, method


def batches(sizes: tuple[int, ...]) -> list[list[Any]]:
    counts = {12: 12, 16: 8}
    return [[batch_of(views(counts[s], seed, side=s), LABELS[: counts[s]]) for s in sizes] for seed in range(2)]


def ours(config: MuseSConfig) -> tuple[Trace, list[list[Start]]]:
    place, method = built(config)
    trace, starts = Trace(), []
    for scale in method.scales:
        rounds, name = Rounds(scale, place.runtime), f"{scale.info.image_size} px"
        starts.append([follow_round(rounds, epoch, 0, trace, name=name) for epoch in (0, 1)])
    follow_student(place.trainer(method), 2, batches(config.image_sizes), trace)
    return trace, starts


def published(
    starts: list[list[Start]], sizes: tuple[int, ...], *, on_teacher: bool = False
) -> tuple[Trace, list[float]]:
    """The same by hand, and the shares of images that the adversarial term counts."""
    (place, method), trace, shares = built(ON_TEACHER if on_teacher else CONFIG), Trace(), []
    networks = state_of(place.teacher), state_of(place.student)
    side = state_of(method.embedding.side)
    embeddings = place.setup.label_embeddings
    centres, scale = (torch.empty(0), torch.empty(0)) if on_teacher else spread(embeddings)
    for size, (first, second) in zip(sizes, starts, strict=True):
        net = {name.removeprefix("generator."): value for name, value in first.state.items()}
        pool: Moments | None = None
        for epoch, start in enumerate((first, second)):
            noise = {name: start.state[f"generator.{name}"] for name in ("noise.weight", "noise.bias")}
            net, key = net | noise, f"{size} px {epoch}.0"
            spaces = embeddings, centres, side, scale if on_teacher else None
            pool, counted = one_round(key, trace, net, start, networks, spaces, pool, epoch >= 1)
            shares += counted
            if on_teacher and not len(centres):  # the first batch of all
                pooled = look(networks[0], normalised(trace[f"{key} images"])).pooled.detach()
                centres, scale = spread(torch.stack([pooled[start.labels == label].mean(0) for label in range(4)]))
    optimizer, rate = Adam((0.9, 0.999), decay=0.01), cosine_lr(2, first=1, last=5, high=1e-3, low=0.0)  # AdamW
    learned = networks[1] | {f"side.{name}": value for name, value in side.items()}
    for step, parts in enumerate(batches(sizes)):
        key, terms = f"student 2 step {step}", {"kd": torch.zeros(()).double(), "ed": torch.zeros(()).double()}
        for batch in parts:  # a mini-batch of each size: the mean over all images
            share = len(batch.images) / sum(len(other.images) for other in parts)
            seen = look(learned, batch.images, train=True)
            terms["kd"] = terms["kd"] + share * kl(seen.logits, look(networks[0], batch.images).logits, 20).mean()
            distance = distance_to(centres, seen.pooled, batch.labels, learned["side.weight"], learned["side.bias"])
            terms["ed"] = terms["ed"] + share * (distance - 0.015).clamp(min=0)  # Eq. 10: r_i
        descend(trace, key, terms, terms["kd"] + 10 * terms["ed"], learned, optimizer, rate)  # Eq. 8: alpha_ed
        note_statistics(trace, key, learned)
    return trace, shares


def spread(centres: Tensor) -> tuple[Tensor, Tensor]:
    """Centres at CLIP's scale, and what they were multiplied by: the smallest MSE between two of them is 0.03."""
    distances = [(centres[i] - centres[j]).square().mean() for i in range(4) for j in range(i)]
    scale = (0.03 / min(distances)) ** 0.5
    return centres * scale, scale


def distance_to(centres: Tensor, features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """MSE(f_S(x), f_y) over batch and dimensions."""
    return (features @ weight.T + bias - centres[labels]).square().mean()


def one_round(
    key: str,
    trace: Trace,
    net: State,
    start: Start,
    networks: tuple[State, State],
    spaces: tuple[Tensor, Tensor, State, Tensor | None],
    pool: Moments | None,
    adversarial: bool,
) -> tuple[Moments, list[float]]:
    """Algorithm 1's steps on Eq. 11. The student is in evaluation mode, and its map to the embeddings is a constant.
    The last of `spaces`: what brings the teacher's features to the centres' scale, where L_aed looks at these.
    """
    (teacher, student), (embeddings, centres, side, scale) = networks, spaces
    optimizer, drawn, labels, shares = Adam((0.5, 0.999)), deque(start.drawn), start.labels, []
    lowest, kept = float("inf"), torch.empty(0)
    for step in range(3):
        e = batch_norm(net, "norm", embeddings[labels], train=True)
        noisy = [part @ net["noise.weight"][i] + net["noise.bias"][i] for i, part in enumerate(e.split(4))]
        images = decode(net, torch.cat(noisy))  # Eq. 4
        view = normalised(crop_flip(images, drawn.popleft(), drawn.popleft(), pad=4))
        seen = look(teacher, view)
        maps = torch.einsum("bd,bdhw->bhw", teacher["fc.weight"][labels], seen.maps[2])  # Eq. 5
        margin = (1 - maps).clamp(min=0)
        assert 0 < (margin > 0).double().mean() < 1
        ce, bn = cross_entropy(seen.logits, labels).mean(), bn_distance(teacher, seen.moments, pool, 0.9)
        terms = {"ce": ce, "bn": bn, "cam": margin.mean()}  # Eq. 6, Full(1)
        loss = 0.5 * ce + 10 * bn + 0.1 * terms["cam"]
        if adversarial:
            other = look(student, view)
            agree = agreement(other.logits, seen.logits)
            terms["adv"] = -(agree * kl(other.logits, seen.logits)).mean()
            if scale is None:
                distance = distance_to(centres, other.pooled, labels, side["weight"], side["bias"])
            else:
                distance = (scale * seen.pooled - centres[labels]).square().mean()
            terms["aed"] = ((0.03 if scale is None else 0.5) - distance).clamp(min=0)  # Eq. 12: r_o
            loss = loss + 1.3 * terms["adv"] + 5 * terms["aed"]
            shares.append(float(agree.mean()))
        if loss.item() < lowest:
            lowest, kept = loss.item(), images.detach()
        descend(trace, f"{key} step {step}", terms, loss, net, optimizer, 4e-3, "generator.")
    trace[f"{key} images"] = kept
    return [(m.detach(), v.detach()) for m, v in mixed(seen.moments, pool, 0.9)], shares


@pytest.fixture(scope="module")
def statement() -> tuple[Trace, Trace]:
    found, starts = ours(CONFIG)
    expected, shares = published(starts, (12, 16))
    check_mixed(shares)
    return found, expected


def test_steps_are_the_published_ones(statement: tuple[Trace, Trace]) -> None:
    check_at_work(statement[1], "ce", "bn", "cam", "adv", "aed", "kd", "ed")
    check_same(*statement)


def test_one_size_is_muse_s() -> None:
    found, starts = ours(SINGLE)
    check_same(found, published(starts, (12,))[0])


def test_the_generators_game_in_the_teachers_space() -> None:
    found, starts = ours(ON_TEACHER)
    expected, shares = published(starts, (12, 16), on_teacher=True)
    check_mixed(shares)
    check_at_work(expected, "adv", "aed", "ed")
    check_same(found, expected)


CHANGES: list[dict[str, Any]] = [
    {"ce_weight": 0.501},
    {"bn_weight": 10.01},
    {"adv_weight": 1.301},
    {"cam_weight": 0.101},
    {"aed_weight": 5.01},
    {"ed_weight": 10.01},
    {"kd_temperature": 20.01},
    {"student_optimizer": "sgd"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_comparison_sees_a_change(statement: tuple[Trace, Trace], change: dict[str, Any]) -> None:
    check_seen(ours(replace(CONFIG, **change))[0], statement[1])
