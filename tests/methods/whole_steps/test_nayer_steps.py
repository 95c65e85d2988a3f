"""NAYER's whole steps in float64, from the paper (arXiv:2310.00258) and its release's description, not from the code.

Three rounds: warming up, then the two of an epoch, in whose second the release has the student in train mode; then two
student steps. Weights, temperature and rates are written out as published.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
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
from torch.nn import functional as F
from toy_networks import INFO
from traces import Trace, check_at_work, check_mixed, check_same, check_seen

from dfkd_fast.methods.nayer import Nayer, NayerConfig

CONFIG = NayerConfig(
    epochs=5, warmup_epochs=1, synthesis_batch_size=10, synthesis_steps=3, noise_features=12, generator_width=8
)
PRINTED = replace(CONFIG, adv_masked=False, student_mode="eval")
"""Eq. 5 to the letter: the divergence of all images, from a student that is not in training"""
TABLES = replace(CONFIG, generator_form="printed")
"""the generator of the supplement's tables 8 (CIFAR, Tiny-ImageNet) and 9 (ImageNet)"""
ROUNDS = ((0, 0), (1, 0), (1, 1))


def ours(config: NayerConfig, side: int = 16) -> tuple[Trace, list[Start]]:
    place, trace = arena(), Trace()
    place = place._replace(setup=place.setup._replace(info=replace(INFO, image_size=side)))
    method = place.method(Nayer, config)
    rounds = Rounds(method, place.runtime)
    starts = [follow_round(rounds, *where, trace) for where in ROUNDS]
    note_statistics(trace, "after synthesis", state_of(place.student))
    follow_student(place.trainer(method), 2, [batch_of(views(12, seed)) for seed in range(2)], trace)
    return trace, starts


def published(
    starts: list[Start], *, printed: bool = False, generator: Callable[[State, Tensor], Tensor] = decode
) -> tuple[Trace, list[float]]:
    """The same by hand, and the shares of images that the adversarial term counts."""
    place, trace, pool, shares = arena(), Trace(), None, []
    teacher, student = state_of(place.teacher), state_of(place.student)
    embeddings = place.setup.label_embeddings
    net: State = {}
    for (epoch, index), start in zip(ROUNDS, starts, strict=True):
        new = {name.removeprefix("generator."): value for name, value in start.state.items()}
        # a new generator in epoch 0 and when the warm-up ends, else new noisy layers alone
        net = new if index == 0 else net | {name: new[name] for name in ("noise.weight", "noise.bias")}
        e = embeddings[start.labels]
        pool, counted = one_round((epoch, index), trace, net, start, (teacher, student), e, pool, printed, generator)
        shares += counted
    note_statistics(trace, "after synthesis", student)
    optimizer, rate = Sgd(momentum=0.9, decay=1e-4), cosine_lr(2, first=1, last=5, high=0.2, low=2e-4)
    for step in range(2):
        key, view = f"student 2 step {step}", views(12, step)
        # Eq. 6 at T = 20: the student in train mode
        kd = kl(look(student, view, train=True).logits, look(teacher, view).logits, 20).mean()
        descend(trace, key, {"kd": kd}, kd, student, optimizer, rate)
        note_statistics(trace, key, student)
    return trace, shares


def one_round(
    where: tuple[int, int],
    trace: Trace,
    net: State,
    start: Start,
    networks: tuple[State, State],
    embeddings: Tensor,
    pool: Moments | None,
    printed: bool,
    generator: Callable[[State, Tensor], Tensor],
) -> tuple[Moments, list[float]]:
    """Algorithm 1's inner loop: Adam anew, g steps on Eq. 5, the images of the lowest loss; then the running average of
    the teacher's statistics. From an epoch's second round on the student is in train mode.
    """
    (teacher, student), (epoch, index) = networks, where
    key, optimizer, drawn = f"round {epoch}.{index}", Adam((0.5, 0.999)), deque(start.drawn)
    lowest, kept, shares = float("inf"), torch.empty(0), []
    for step in range(3):
        e = batch_norm(net, "norm", embeddings, train=True)  # Eq. 2
        # K-to-1: each K = 4 images in turn have a noisy layer
        noisy = [part @ net["noise.weight"][i] + net["noise.bias"][i] for i, part in enumerate(e.split(4))]
        images = generator(net, torch.cat(noisy))  # Eq. 3
        view = normalised(crop_flip(images, drawn.popleft(), drawn.popleft(), pad=4))
        seen = look(teacher, view)
        ce, bn = cross_entropy(seen.logits, start.labels).mean(), bn_distance(teacher, seen.moments, pool, 0.9)
        terms, loss = {"ce": ce, "bn": bn}, 0.5 * ce + 10 * bn  # Eq. 5: alpha_cls, alpha_bn
        if epoch >= 1:
            logits = look(student, view, train=index > 0 and not printed).logits
            agree = agreement(logits, seen.logits)
            terms["adv"] = -((1 if printed else agree) * kl(logits, seen.logits)).mean()
            loss = loss + 1.33 * terms["adv"]  # alpha_adv
            shares.append(float(agree.mean()))
        if loss.item() < lowest:
            lowest, kept = loss.item(), images.detach()
        descend(trace, f"{key} step {step}", terms, loss, net, optimizer, 4e-3, "generator.")
    trace[f"{key} images"] = kept
    return [(m.detach(), v.detach()) for m, v in mixed(seen.moments, pool, 0.9)], shares


def decode_table(net: State, vectors: Tensor) -> Tensor:
    """Table 8 or 9, row by row, for images of 16 or 80 pixels and maps of 8 and 4 in place of 128 and 64 channels. What
    the last BatchNorm gives counts as normalised by the data's mean and standard deviation.
    """
    rows = vectors @ net["decoder.stem.weight"].T + net["decoder.stem.bias"]
    side, widths = {8 * 4 * 4: (16 // 4, (8, 4)), 8 * 5 * 5: (80 // 16, (8, 8, 4, 4))}[rows.shape[1]]
    x = batch_norm(net, "decoder.stem_norm", rows, train=True).view(len(rows), 8, side, side)
    for place, channels in enumerate(widths):
        x = F.conv2d(x, spectral(net, f"decoder.convs.{place}"), padding=1)
        assert x.shape[1:] == (channels, side * 2**place, side * 2**place)
        x = batch_norm(net, f"decoder.norms.{place}", x, train=True)
        x = torch.where(x > 0, x, 0.2 * x).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = F.conv2d(x, spectral(net, "decoder.to_rgb"), net["decoder.to_rgb.bias"], padding=1)
    x = batch_norm(net, "decoder.image_norm", 1 / (1 + (-x).exp()), train=True)
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (INFO.mean, INFO.std))
    return x * std + mean


def spectral(net: State, name: str) -> Tensor:
    """W / sigma(W), sigma by one power iteration from where the last one ended (Miyato et al., algorithm 1); a gradient
    goes through sigma, none through the singular vectors.
    """
    matrix, u = net[f"{name}.weight"].flatten(1), net[f"{name}.left"]
    with torch.no_grad():
        v = matrix.T @ u / (matrix.T @ u).square().sum().sqrt()
        u.copy_(matrix @ v / (matrix @ v).square().sum().sqrt())
    return net[f"{name}.weight"] / (u.clone() @ matrix @ v)


@pytest.fixture(scope="module")
def statement() -> tuple[Trace, Trace]:
    found, starts = ours(CONFIG)
    expected, shares = published(starts)
    check_mixed(shares)
    return found, expected


def test_steps_are_the_published_ones(statement: tuple[Trace, Trace]) -> None:
    check_at_work(statement[1], "ce", "bn", "adv", "kd")
    check_same(*statement)


def test_equation_5_as_printed() -> None:
    found, starts = ours(PRINTED)
    check_same(found, published(starts, printed=True)[0])


@pytest.mark.parametrize("side", [16, 80], ids=["table8", "table9"])
def test_the_generator_as_printed(side: int) -> None:
    found, starts = ours(TABLES, side)
    expected, shares = published(starts, generator=decode_table)
    check_mixed(shares)
    check_at_work(expected, "ce", "bn", "adv", "kd")
    check_same(found, expected)


CHANGES: list[dict[str, Any]] = [
    {"ce_weight": 0.501},
    {"bn_weight": 10.01},
    {"adv_weight": 1.331},
    {"adv_masked": False},
    {"bn_momentum": 0.901},
    {"generator_lr": 4.001e-3},
    {"kd_temperature": 20.01},
    {"student_momentum": 0.901},
    {"student_weight_decay": 2e-4},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_comparison_sees_a_change(statement: tuple[Trace, Trace], change: dict[str, Any]) -> None:
    changed, _ = ours(replace(CONFIG, **change))
    check_seen(changed, statement[1])
