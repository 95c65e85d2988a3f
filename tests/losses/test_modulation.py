"""SSD-KD's modulating function and the label term that it weakens, against Eq. 3 in Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd_fast.losses.generator import label_ce, modulation

BUFFER = torch.tensor([3, 0, 5, 0, 0, 1, 1])  # images of each class


def logits() -> Tensor:
    made = torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    return made.requires_grad_()


def phi(row: list[float], gamma: float) -> float:
    """Eq. 3, with the indicator's sum counted image by image."""
    powers = [math.exp(value) for value in row]
    predicted = row.index(max(row))
    members = [c for c, count in enumerate(BUFFER.tolist()) for _ in range(count)]
    same = sum(member == predicted for member in members)
    return (1 - same / len(members)) * (1 - powers[predicted] / sum(powers)) ** gamma


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_modulation_is_equation_3(gamma: float) -> None:
    teacher = logits()
    found = modulation(teacher, BUFFER.double() / BUFFER.sum(), gamma)
    torch.testing.assert_close(found.tolist(), [phi(row, gamma) for row in teacher.tolist()], rtol=1e-9, atol=1e-12)
    assert not found.requires_grad


def test_modulation_of_an_empty_buffer_is_difficulty_alone() -> None:
    teacher = logits()
    confidence = teacher.softmax(1).amax(1)
    torch.testing.assert_close(modulation(teacher, torch.zeros(7).double(), 2.0), (1 - confidence.detach()) ** 2)


def test_modulation_in_low_precision_is_float32() -> None:
    assert modulation(logits().bfloat16(), torch.zeros(7), 2.0).dtype == torch.float32


def test_weighted_label_term() -> None:
    """The mean over the batch of phi times CE; the gradient treats phi as a constant."""
    teacher, labels = logits(), torch.tensor([0, 6, 3, 3, 1, 2])
    shares = BUFFER.double() / BUFFER.sum()
    weights = torch.tensor([phi(row, 2.0) for row in teacher.tolist()], dtype=torch.float64)
    found = label_ce(teacher, labels, weights=modulation(teacher, shares, 2.0))
    rows = -F.log_softmax(teacher, 1)[torch.arange(6), labels]
    torch.testing.assert_close(found, (weights * rows).sum() / 6, rtol=1e-9, atol=1e-12)
    (ours,) = torch.autograd.grad(found, teacher)
    expected = weights[:, None] / 6 * (teacher.softmax(1) - F.one_hot(labels, 7))
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-9, atol=1e-12)
