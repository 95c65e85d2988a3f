"""MSARC's whole steps in float64, from the paper (Scientific Reports 2024; where it is silent, Fast's release) and not
from the code.

Two rounds of the attention generator from a learned start, without and with the adversarial term; two student steps:
as the defaults read the paper, and as its equations are printed, with one kappa, the divergence on all images, Eqs. 6
and 12 to 14.
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass, replace
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
    class_map_distance,
    cosine_lr,
    crop_flip,
    cross_entropy,
    grad_cam_distance,
    kl,
    look,
    mixed,
)
from rounds import Rounds
from torch import Tensor
from torch.nn import functional as F
from traces import Trace, check_at_work, check_mixed, check_same, check_seen

from dfkd_fast.methods.msarc import Msarc, MsarcConfig

CONFIG = MsarcConfig(
    epochs=6, warmup_epochs=2, synthesis_batch_size=10, synthesis_steps=2, latent_dim=8, generator_width=32
)


@dataclass(frozen=True)
class Reading:
    """What the two readings differ in."""

    config: MsarcConfig
    bn: float = 10.0
    ce: float = 0.5
    adv: float = 1.33
    masked: bool = True
    printed: bool = False
    """Eqs. 6 and 12 to 14 to the letter"""


KAPPA = 0.7
CASES = {
    "default": Reading(CONFIG),
    "printed": Reading(
        replace(
            CONFIG,
            bn_weight=KAPPA,
            ce_weight=KAPPA,
            adv_weight=1.0,
            adv_masked=False,
            softmax_gain="none",
            cam_weighting="gradient_times_map",
            cam_relu=True,
        ),
        bn=KAPPA,
        ce=KAPPA,
        adv=1.0,
        masked=False,
        printed=True,
    ),
}
META = "start.meta_parameters."


def generate(net: State, reading: Reading) -> Tensor:
    """Eq. 3: a stem, four blocks of transposed convolution, BatchNorm, LeakyReLU and attention, RGB, sigmoid."""
    flat = net["latents"] @ net["decoder.stem.weight"].T + net["decoder.stem.bias"]
    x = batch_norm(net, "decoder.stem_norm", flat.view(len(flat), -1, 1, 1), train=True)
    for i in range(4):
        name = f"decoder.blocks.{i}"
        x = F.conv_transpose2d(x, net[f"{name}.0.weight"], stride=2, padding=1)
        x = batch_norm(net, f"{name}.1", x, train=True)
        x = attend(net, f"{name}.3", torch.where(x > 0, x, 0.2 * x), reading)
    return torch.sigmoid(F.conv2d(x, net["decoder.to_rgb.weight"], net["decoder.to_rgb.bias"], padding=1))


def attend(net: State, name: str, maps: Tensor, reading: Reading) -> Tensor:
    """Eqs. 4 to 6; lambda = 0.03."""

    def normed(x: Tensor, norm: str) -> Tensor:
        return batch_norm(net, f"{name}.{norm}", x, train=True).clamp(min=0)

    a_d = F.conv2d(maps, net[f"{name}.squeeze.weight"], net[f"{name}.squeeze.bias"])
    psi = normed(F.conv2d(a_d, net[f"{name}.encode.0.weight"], padding=1), "encode.1")
    pooled, places = F.max_pool2d(psi, 2, return_indices=True)
    gamma = normed(F.conv2d(pooled, net[f"{name}.core.0.weight"], padding=1), "core.1")  # Eq. 4
    back = normed(F.conv_transpose2d(gamma, net[f"{name}.core.3.weight"], padding=1), "core.4")
    back = F.max_unpool2d(back, places, 2)
    back = normed(F.conv_transpose2d(back, net[f"{name}.decode.0.weight"], padding=1), "decode.1")
    scores = F.conv2d(back, net[f"{name}.decode.3.weight"], net[f"{name}.decode.3.bias"])  # Eq. 5
    share = scores.flatten(1).softmax(1).view_as(scores)
    gain = 1 if reading.printed else maps.shape[2] * maps.shape[3]  # by default 1 on average, not 1 / (HW)
    return 0.03 * gain * share * maps + maps  # Eq. 6


def ours(config: MsarcConfig) -> tuple[Trace, list[Start]]:
    place, trace, starts = arena(), Trace(), []
    method = place.method(Msarc, config)
    rounds = Rounds(method, place.runtime)
    for epoch in (0, 1):
        starts.append(follow_round(rounds, epoch, 0, trace, ("generator",)))
        learned = method.start.weights.named_parameters()
        trace |= {f"after {epoch} {META}{name}": value.detach().clone() for name, value in learned}
    follow_student(place.trainer(method), 3, [batch_of(views(12, seed)) for seed in range(2)], trace)
    return trace, starts


def published(reading: Reading, starts: list[Start]) -> tuple[Trace, list[float]]:
    """The same by hand, and the shares of images that the adversarial term counts."""
    place, trace, shares, pool = arena(), Trace(), [], None
    teacher, student = state_of(place.teacher), state_of(place.student)
    learned = {name.removeprefix(META): v for name, v in starts[0].state.items() if name.startswith(META)}
    outer = Adam((0.5, 0.999))
    for epoch, start in enumerate(starts):
        adapted = {
            name: value.detach().clone().requires_grad_("running" not in name) for name, value in learned.items()
        }
        adapted["latents"] = start.state["generator.latents"]
        sums, pool, counted = one_round(epoch, trace, reading, adapted, start, (teacher, student), pool)
        shares += counted
        outer.step(learned, sums, {name: 0.0 if name == "latents" else 2 * 5e-3 for name in sums})  # Fast's FOMAML
        trace |= {f"after {epoch} {META}{name}": learned[name].detach().clone() for name in sums}
    optimizer, rate = Sgd(0.9, 1e-4), cosine_lr(3, first=2, last=6, high=0.2, low=2e-4)
    for step in range(2):
        key, view = f"student 3 step {step}", views(12, step)
        other, own = look(teacher, view), look(student, view, train=True)
        forms = {"times_map": reading.printed, "relu": reading.printed}  # Eqs. 12 and 13, Eq. 14
        terms = {
            "kd": kl(own.logits, other.logits.detach(), 20).mean(),
            "msarc": class_map_distance(student, own, teacher, other)  # Eqs. 9, 10, 15: every alpha_l = 1
            + sum(grad_cam_distance(own, other, stage, **forms) for stage in range(2)),  # Eq. 11
        }
        descend(trace, key, terms, terms["kd"] + terms["msarc"], student, optimizer, rate)  # Eq. 17: beta = 1
        note_statistics(trace, key, student)
    return trace, shares


def one_round(
    epoch: int,
    trace: Trace,
    reading: Reading,
    net: State,
    start: Start,
    networks: tuple[State, State],
    pool: Moments | None,
) -> tuple[State, Moments, list[float]]:
    """Two steps on Eq. 16: the sum of their gradients, and the running statistics behind them."""
    teacher, student = networks
    optimizer, drawn, lowest, kept = Adam((0.5, 0.999)), deque(start.drawn), float("inf"), torch.empty(0)
    rates = {name: 0.015 if name == "latents" else 0.005 for name in net}
    sums: State = {}
    shares = []
    for step in range(2):
        images = generate(net, reading)
        view = normalised(crop_flip(images, drawn.popleft(), drawn.popleft(), pad=4))
        seen = look(teacher, view)
        ce, bn = cross_entropy(seen.logits, start.labels).mean(), bn_distance(teacher, seen.moments, pool, 0.9)
        terms, loss = {"ce": ce, "bn": bn}, reading.ce * ce + reading.bn * bn
        if epoch + 1 >= 2:
            logits = look(student, view).logits
            agree = agreement(logits, seen.logits)
            terms["adv"] = -((agree if reading.masked else 1) * kl(logits, seen.logits)).mean()
            loss = loss + reading.adv * terms["adv"]
            shares.append(float(agree.mean()))
        if loss.item() < lowest:
            lowest, kept = loss.item(), images.detach()
        grads = descend(trace, f"round {epoch}.0 step {step}", terms, loss, net, optimizer, rates, "generator.")
        sums = {name: sums.get(name, 0) + grad for name, grad in grads.items()}
    trace[f"round {epoch}.0 images"] = kept
    return sums, [(m.detach(), v.detach()) for m, v in mixed(seen.moments, pool, 0.9)], shares


@functools.cache
def statement(name: str) -> tuple[Trace, Trace]:
    found, starts = ours(CASES[name].config)
    expected, shares = published(CASES[name], starts)
    check_mixed(shares)
    return found, expected


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_published_ones(name: str) -> None:
    found, expected = statement(name)
    check_at_work(expected, "ce", "bn", "adv", "kd", "msarc")
    check_same(found, expected)


CHANGES: list[dict[str, Any]] = [
    {"bn_weight": 10.01},
    {"adv_weight": 1.331},
    {"adv_masked": False},
    {"msarc_weight": 1.01},
    {"attention_scale": 0.0301},
    {"cam_weighting": "gradient_times_map"},
    {"kd_temperature": 20.01},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_comparison_sees_a_change(change: dict[str, Any]) -> None:
    check_seen(ours(replace(CONFIG, **change))[0], statement("default")[1])
