"""HiDFD's Eqs. 1 and 8 to 14 against versions written image by image and class by class, in float64 to 1e-9."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dfkd_fast.losses import gan
from dfkd_fast.methods.hidfd.class_frequency import ClassFrequency

BATCH, CLASSES = 6, 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


def log_sigmoid(value: Tensor) -> Tensor:
    return torch.log(1 / (1 + torch.exp(-value)))


def check(found: Callable[..., Tensor], expected: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Values, and gradients with respect to every input."""
    leaves = [value.requires_grad_() for value in inputs]
    ours, theirs = found(*leaves), expected(*leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for mine, other in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
        assert mine.abs().max() > 0


def test_gan_losses_are_equation_1() -> None:
    real, fake = randn(BATCH, seed=1), randn(BATCH, seed=2)
    check(
        gan.discriminator_gan,
        lambda real, fake: -sum(log_sigmoid(a) for a in real) / BATCH - sum(log_sigmoid(-b) for b in fake) / BATCH,
        real,
        fake,
    )
    check(gan.generator_gan, lambda fake: sum(log_sigmoid(-b) for b in fake) / BATCH, fake)


def test_hinge_losses() -> None:
    real, fake = randn(BATCH, seed=1), randn(BATCH, seed=2)
    check(
        lambda real, fake: gan.discriminator_gan(real, fake, hinge=True),
        lambda real, fake: (
            sum((1 - a).clamp(min=0) + (1 + b).clamp(min=0) for a, b in zip(real, fake, strict=True)) / 6
        ),
        real,
        fake,
    )
    check(lambda fake: gan.generator_gan(fake, hinge=True), lambda fake: -sum(fake) / BATCH, fake)


def class_log_probability(logits: Tensor, row: int, label: int, *, is_fake: bool) -> Tensor:
    """log of the softmax over all 2K, class by class."""
    scores = [torch.exp(logits[row, 2 * c + sign]) for c in range(CLASSES) for sign in (0, 1)]
    return torch.log(torch.exp(logits[row, 2 * label + is_fake]) / sum(scores))


def test_classes_are_equation_1() -> None:
    labels, others = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([3, 3, 0, 1, 2, 2])
    real, fake = randn(BATCH, 2 * CLASSES, seed=1), randn(BATCH, 2 * CLASSES, seed=2)

    def discriminator(real: Tensor, fake: Tensor) -> Tensor:
        rows = range(BATCH)
        positive = sum(class_log_probability(real, row, int(labels[row]), is_fake=False) for row in rows)
        negative = sum(class_log_probability(fake, row, int(others[row]), is_fake=True) for row in rows)
        return -(positive + negative) / BATCH

    def generator(fake: Tensor) -> Tensor:
        pairs = [
            class_log_probability(fake, row, int(others[row]), is_fake=True)
            - class_log_probability(fake, row, int(others[row]), is_fake=False)
            for row in range(BATCH)
        ]
        return sum(pairs) / BATCH

    check(lambda real, fake: gan.discriminator_classes(real, labels, fake, others), discriminator, real, fake)
    check(lambda fake: gan.generator_classes(fake, others), generator, fake)


def test_feature_distance_is_the_norm_of_equations_8_9_and_14() -> None:
    def expected(first: Tensor, second: Tensor) -> Tensor:
        return sum((first[row] - second[row]).square().sum().sqrt() for row in range(BATCH)) / BATCH

    check(gan.feature_distance, expected, randn(BATCH, 5, seed=1), randn(BATCH, 5, seed=2))


def test_smoothing_is_equations_10_to_12() -> None:
    """Over three iterations: frequencies from the teacher's predictions, and the term with the weights so far."""
    frequency = ClassFrequency(CLASSES, BATCH, momentum=0.3, least=0.0).double()
    counts = [BATCH / CLASSES] * CLASSES
    for step in range(3):
        logits = randn(BATCH, CLASSES, seed=step)

        def expected(logits: Tensor, counts: list[float] = counts) -> Tensor:
            shares = [sum(torch.exp(row[c]) / torch.exp(row).sum() for row in logits) / BATCH for c in range(CLASSES)]
            return sum(p * torch.log(p) / (n / sum(counts)) for p, n in zip(shares, counts, strict=True))

        check(lambda logits: gan.smoothed_entropy(logits, frequency.weights()), expected, logits)
        frequency.update(logits.detach())
        seen = [sum(int(row.argmax()) == c for row in logits) for c in range(CLASSES)]
        counts = [0.7 * n + 0.3 * new for n, new in zip(counts, seen, strict=True)]
        assert frequency.counts.tolist() == pytest.approx(counts, rel=1e-12)


def test_a_class_that_never_comes_has_a_bounded_weight() -> None:
    frequency = ClassFrequency(CLASSES, BATCH, momentum=0.5)
    for _ in range(200):
        frequency.update(torch.eye(CLASSES)[:1].expand(BATCH, CLASSES))
    assert frequency.weights().max().item() == pytest.approx((BATCH + 3 * 0.1) / 0.1)


def test_entropy_of_a_class_that_underflows_has_no_gradient() -> None:
    logits = torch.tensor([[0.0, -200.0]], requires_grad=True)
    gan.smoothed_entropy(logits, torch.ones(2)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert math.isfinite(gan.smoothed_entropy(logits, torch.ones(2)).item())
