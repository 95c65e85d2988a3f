"""Image priors and the competition term against versions written pixel by pixel, values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dfkd_fast.losses.adversarial import competition
from dfkd_fast.losses.generator import l2, tv_l1, tv_l2

DIRECTIONS = [(0, 1), (1, 0), (1, -1), (1, 1)]


def batch() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64).requires_grad_()


def neighbours(images: Tensor, down: int, right: int) -> list[Tensor]:
    """Differences of every pixel and its neighbour, one by one."""
    count, channels, height, width = images.shape
    return [
        images[b, c, y, x] - images[b, c, y + down, x + right]
        for b in range(count)
        for c in range(channels)
        for y in range(height - down)
        for x in range(width)
        if 0 <= x + right < width
    ]


def naive_tv_l1(images: Tensor) -> Tensor:
    directions = [neighbours(images, *direction) for direction in DIRECTIONS]
    return sum(sum(abs(value) for value in values) / len(values) for values in directions)


def naive_tv_l2(images: Tensor) -> Tensor:
    return sum(sum(value**2 for value in neighbours(images, *direction)).sqrt() for direction in DIRECTIONS)


def naive_l2(images: Tensor) -> Tensor:
    return sum((image**2).sum().sqrt() for image in images) / len(images)


@pytest.mark.parametrize(("loss", "naive"), [(tv_l1, naive_tv_l1), (tv_l2, naive_tv_l2), (l2, naive_l2)])
def test_priors(loss: Callable[[Tensor], Tensor], naive: Callable[[Tensor], Tensor]) -> None:
    images = batch()
    torch.testing.assert_close(loss(images), naive(images), rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(loss(images), images)
    (expected,) = torch.autograd.grad(naive(images), images)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found.abs().min() >= 0
    assert found.abs().max() > 0


def js(student: list[float], teacher: list[float], temperature: float) -> float:
    """(KL(M || P) + KL(M || Q)) / 2 in Python floats, every probability kept within [0.01, 0.99]."""

    def probabilities(logits: list[float]) -> list[float]:
        powers = [math.exp(value / temperature) for value in logits]
        return [power / sum(powers) for power in powers]

    def within(value: float) -> float:
        return min(max(value, 0.01), 0.99)

    p, q = probabilities(student), probabilities(teacher)
    m = [within((a + b) / 2) for a, b in zip(p, q, strict=True)]
    total = 0.0
    for other in (p, q):
        total += 0.5 * sum(c * (math.log(c) - math.log(within(a))) for a, c in zip(other, m, strict=True))
    return total


def test_competition() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (4 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)).requires_grad_().unbind()
    rows = [js(s, t, 3.0) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert competition(student, teacher).item() == pytest.approx(1 - sum(rows) / 6, rel=1e-9)
    assert torch.autograd.gradcheck(lambda s, t: competition(s, t), (student, teacher))
    assert competition(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


def test_competition_ends_where_it_is_clamped() -> None:
    """Opposite predictions of two classes: the divergence is above 1, and the clamped term passes no gradient."""
    student = torch.tensor([[60.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 9.0]], dtype=torch.float64, requires_grad=True)
    free, clamped = competition(student, teacher), competition(student, teacher, clamp=True)
    assert free.item() < 0
    assert clamped.item() == 0
    assert torch.autograd.grad(free, teacher)[0].abs().max() > 0
    assert torch.autograd.grad(clamped, teacher)[0].abs().max() == 0


def test_networks_that_agree_compete_fully() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert competition(logits, logits).item() == pytest.approx(1.0, rel=1e-12)
