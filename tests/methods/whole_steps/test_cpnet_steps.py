"""CPNet's whole steps in float64, from what the paper's release describes (Chen et al., ICCV 2025), not from the code.

Three rounds: warming up, then the two of an epoch, in whose second the release has the student in train mode; then two
student steps. Weights, temperature and rates are written out as published. The teacher's three BatchNorm inputs are the
nodes.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Any, NamedTuple

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
    kl,
    look,
    mixed,
)
from rounds import Rounds
from torch import Tensor
from torch.nn import functional as F
from traces import Trace, check_at_work, check_mixed, check_same, check_seen

from dfkd_fast.methods.cpnet.method import Cpnet, CpnetConfig

CONFIG = CpnetConfig(epochs=5, warmup_epochs=1, synthesis_batch_size=10, synthesis_steps=3, noise_features=12)
ROUNDS = ((0, 0), (1, 0), (1, 1))


def ours(config: CpnetConfig) -> tuple[Trace, list[Start]]:
    place, trace = arena(), Trace()
    method = place.method(Cpnet, config)
    rounds = Rounds(method, place.runtime)
    starts = [follow_round(rounds, *where, trace) for where in ROUNDS]
    note_statistics(trace, "after synthesis", state_of(place.student))
    follow_student(place.trainer(method), 2, [batch_of(views(12, seed)) for seed in range(2)], trace)
    return trace, starts


class Known(NamedTuple):
    """What rounds share."""

    teacher: State
    student: State
    embeddings: Tensor


def published(starts: list[Start]) -> tuple[Trace, list[float]]:
    """The same by hand, and the shares of images that the adversarial term counts."""
    place, trace, pool, shares = arena(), Trace(), None, []
    known = Known(state_of(place.teacher), state_of(place.student), place.setup.label_embeddings)
    net: State = {}
    for (epoch, index), start in zip(ROUNDS, starts, strict=True):
        new = {name.removeprefix("generator."): value for name, value in start.state.items()}
        # a new generator in epoch 0 and when the warm-up ends, else new noisy layers alone
        net = new if index == 0 else net | {name: new[name] for name in ("noise.weight", "noise.bias")}
        pool, counted = one_round((epoch, index), trace, net, start, known, pool)
        shares += counted
    teacher, student = known.teacher, known.student
    note_statistics(trace, "after synthesis", student)
    optimizer, rate = Sgd(momentum=0.9, decay=1e-4), cosine_lr(2, first=1, last=5, high=0.2, low=2e-4)
    for step in range(2):
        key, view = f"student 2 step {step}", views(12, step)
        kd = kl(look(student, view, train=True).logits, look(teacher, view).logits, 20).mean()
        descend(trace, key, {"kd": kd}, kd, student, optimizer, rate)
        note_statistics(trace, key, student)
    return trace, shares


def one_round(
    where: tuple[int, int], trace: Trace, net: State, start: Start, known: Known, pool: Moments | None
) -> tuple[Moments, list[float]]:
    """Adam anew, g steps on bn 10 L_BN + 0.5 CE + 1.33 (-masked KL + L_align) + sum_k MSE(g_k, F_k), the images of the
    lowest loss; then the running average of the teacher's statistics.
    """
    (epoch, index), (teacher, student, embeddings) = where, known
    key, optimizer, drawn = f"round {epoch}.{index}", Adam((0.5, 0.999)), deque(start.drawn)
    lowest, kept, shares = float("inf"), torch.empty(0), []
    for step in range(3):
        images, made = generate(net, embeddings[start.labels])
        view = normalised(crop_flip(recoloured(images, drawn.popleft()), drawn.popleft(), drawn.popleft(), pad=4))
        view, partners, share = pasted(view, drawn.popleft(), drawn.popleft())
        seen, (y, other) = look(teacher, view), (start.labels, start.labels[partners])
        ce = ((1 - share) * cross_entropy(seen.logits, y) + share * cross_entropy(seen.logits, other)).mean()
        bn = bn_distance(teacher, seen.moments, pool, 0.9)
        terms = {"ce": ce, "bn": bn, "inversion": inverted(teacher, view, made, mixed(seen.moments, pool, 0.9))}
        loss = 0.5 * ce + 10 * bn + terms["inversion"]
        if epoch >= 1:
            logits = look(student, view, train=index > 0).logits
            agree = agreement(logits, seen.logits)
            terms["adv"] = -(agree * kl(logits, seen.logits)).mean()
            terms["align"] = aligned(teacher, seen.pooled, y)
            loss = loss + 1.33 * (terms["adv"] + terms["align"])
            shares.append(float(agree.mean()))
        if loss.item() < lowest:
            lowest, kept = loss.item(), images.detach()
        descend(trace, f"{key} step {step}", terms, loss, net, optimizer, 4e-3, "generator.")
    trace[f"{key} images"] = kept
    return [(m.detach(), v.detach()) for m, v in mixed(seen.moments, pool, 0.9)], shares


def generate(net: State, embeddings: Tensor) -> tuple[Tensor, list[Tensor]]:
    """NAYER's noisy layers, K = 4 images in turn to each, a linear stem, BatchNorm; to each next node nearest
    upsampling, 3x3, BatchNorm, LeakyReLU 0.2; 3x3 to RGB and a sigmoid.
    """
    e = batch_norm(net, "norm", embeddings, train=True)
    noisy = torch.cat([part @ net["noise.weight"][i] + net["noise.bias"][i] for i, part in enumerate(e.split(4))])
    rows = noisy @ net["stem.weight"].T + net["stem.bias"]
    made = [batch_norm(net, "stem_norm", rows.view(len(rows), 10, 4, 4), train=True)]
    for stage in (0, 1):
        doubled = made[-1].repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = F.conv2d(doubled, net[f"stages.{stage}.conv.weight"], padding=1)
        x = batch_norm(net, f"stages.{stage}.norm", x, train=True)
        made.append(torch.where(x > 0, x, 0.2 * x))
    rgb = F.conv2d(made[-1], net["to_rgb.weight"], net["to_rgb.bias"], padding=1)
    return 1 / (1 + (-rgb).exp()), made


def recoloured(images: Tensor, drawn: Tensor) -> Tensor:
    """Four images in ten: brightness, contrast, saturation times 0.9 to 1.1, hue by up to a tenth of a circle."""
    rows, luma = [], torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    axis = torch.ones(3, 1, 1).double() / math.sqrt(3)
    for image, (brightness, contrast, saturation, hue, chance) in zip(images, drawn.T.tolist(), strict=True):
        if chance >= 0.4:
            rows.append(image)
            continue
        b, c, s = (0.9 + 0.2 * value for value in (brightness, contrast, saturation))
        angle = 2 * math.pi * 0.1 * (2 * hue - 1)
        x = b * image
        x = c * x + (1 - c) * (luma * x).sum(0).mean()
        x = s * x + (1 - s) * (luma * x).sum(0)
        across = torch.linalg.cross(axis.expand_as(x), x, dim=0)
        along = axis * (axis * x).sum(0)
        rows.append((x * math.cos(angle) + across * math.sin(angle) + along * (1 - math.cos(angle))).clamp(0, 1))
    return torch.stack(rows)


def pasted(view: Tensor, order: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CutMix for one image in two: a rectangle of uniform area, of the shape of the image, from its partner."""
    partners, side, rows, shares = order.argsort(), view.shape[-1], [], []
    for own, other, (chance, area, top, left) in zip(view, view[partners], drawn.T.tolist(), strict=True):
        length = math.floor(math.sqrt(area) * side) if chance < 0.5 else 0
        y, x = (math.floor(place * (side - length + 1)) for place in (top, left))
        patched = own.clone()
        patched[:, y : y + length, x : x + length] = other[:, y : y + length, x : x + length]
        rows.append(patched)
        shares.append(length**2 / side**2)
    return torch.stack(rows), partners, torch.tensor(shares).double()


def inverted(teacher: State, view: Tensor, made: list[Tensor], moments: Moments) -> Tensor:
    """sum_k MSE(g_k, F_k), from the deepest BatchNorm's input to the first's."""
    inputs, x = [], view
    for layer in (1, 2, 3):
        inputs.append(F.conv2d(x, teacher[f"conv{layer}.weight"], stride=min(layer, 2), padding=1))
        x = batch_norm(teacher, f"bn{layer}", inputs[-1], train=False).clamp(min=0)
    total = torch.zeros(()).double()
    for layer, own in zip((3, 2, 1), made, strict=True):
        (mean, var), read = moments[layer - 1], inputs[layer - 1]
        standard = (read - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
        wanted = standard * teacher[f"bn{layer}.running_var"].view(-1, 1, 1).sqrt()
        wanted = (wanted + teacher[f"bn{layer}.running_mean"].view(-1, 1, 1)).detach()
        total = total + (own - wanted).square().sum() / own.numel()
    return total


def aligned(teacher: State, features: Tensor, labels: Tensor) -> Tensor:
    """mean |cos(f - (delta y - bias) W+, 1 W+)|, W+ from the eigenvectors of W W^T, singular values at least 0.1."""
    weight, bias, delta = teacher["fc.weight"].detach(), teacher["fc.bias"].detach(), math.log(0.9 * 3 / 0.1)
    squares, left = torch.linalg.eigh(weight @ weight.T)
    values = squares.sqrt()
    inverse = left @ torch.diag(1 / (values * values.clamp(min=0.1))) @ left.T @ weight
    rest, along = features - (delta * F.one_hot(labels, 4).double() - bias) @ inverse, inverse.sum(0)
    return ((rest @ along) / (rest.square().sum(1) * along.square().sum()).sqrt()).abs().mean()


@pytest.fixture(scope="module")
def statement() -> tuple[Trace, Trace]:
    found, starts = ours(CONFIG)
    expected, shares = published(starts)
    check_mixed(shares)
    return found, expected


def test_steps_are_the_published_ones(statement: tuple[Trace, Trace]) -> None:
    check_at_work(statement[1], "ce", "bn", "inversion", "adv", "align", "kd")
    check_same(*statement)


CHANGES: list[dict[str, Any]] = [
    {"ce_weight": 0.501},
    {"bn_weight": 10.01},
    {"inversion_weight": 1.001},
    {"adv_weight": 1.331},
    {"align_weight": 1.331},
    {"bn_momentum": 0.901},
    {"cutmix_probability": 0.9},
    {"colour_jitter": 0.101},
    {"colour_jitter_probability": 0.9},
    {"smoothing": 0.101},
    {"least_singular_value": 5.0},
    {"student_mode": "eval"},
    {"nodes": ("bn3", "bn1")},
    {"generator_lr": 4.001e-3},
    {"kd_temperature": 20.01},
    {"student_momentum": 0.901},
    {"student_weight_decay": 2e-4},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_comparison_sees_a_change(statement: tuple[Trace, Trace], change: dict[str, Any]) -> None:
    changed, _ = ours(replace(CONFIG, **change))
    check_seen(changed, statement[1])
