"""Class balance, activation and attention against versions with loops: values and gradients to 1e-9."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dfkd_fast.losses.distillation import attention_transfer
from dfkd_fast.losses.generator import activation, class_balance


def check(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], value: Tensor) -> None:
    """The same value and gradient."""
    results = []
    for loss in (ours, theirs):
        at = value.clone().requires_grad_()
        found = loss(at)
        results.append((found.detach(), *torch.autograd.grad(found, at)))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def naive_balance(logits: Tensor) -> Tensor:
    share = torch.stack([row.exp() / row.exp().sum() for row in logits]).sum(0) / len(logits)
    return -torch.stack([-p * p.log() for p in share]).sum()


def naive_attention(mine: list[Tensor], theirs: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(mine, theirs, strict=True):
        maps = []
        for batch in (one, other):
            rows = [torch.stack([channel.square() for channel in image]).mean(0).flatten() for image in batch]
            maps.append(torch.stack([row / row.square().sum().sqrt() for row in rows]))
        total = total + ((maps[0] - maps[1]) ** 2).sum() / maps[0].numel()
    return total


@pytest.mark.parametrize("shape", [(1, 2), (7, 5), (64, 100)])
def test_class_balance(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    check(class_balance, naive_balance, 3 * torch.randn(shape, dtype=torch.float64))


def test_class_balance_has_its_extremes() -> None:
    """Equal shares: -log K. One class alone: 0, with no NaN for the others."""
    sure = 1000 * torch.eye(6, requires_grad=True)
    assert class_balance(sure).item() == pytest.approx(-math.log(6))
    alone = (1000 * torch.eye(6)[:1]).repeat(4, 1).requires_grad_()
    loss = class_balance(alone)
    (gradient,) = torch.autograd.grad(loss, alone)
    assert loss.item() == pytest.approx(0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 3), (9, 64)])
def test_activation(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    features = torch.randn(shape, dtype=torch.float64)
    check(activation, lambda value: -torch.stack([row.abs().sum() for row in value]).sum() / value.numel(), features)


def test_attention_transfer() -> None:
    """Stages of several sizes, channels that differ between the networks; gradients of both."""
    torch.manual_seed(0)
    shapes = [(5, 3, 6, 6), (5, 8, 3, 4)]
    theirs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    mine = [torch.randn(5, 7, *shape[2:], dtype=torch.float64) for shape in shapes]
    for stage in range(2):
        check(
            lambda at, stage=stage: attention_transfer([*mine[:stage], at, *mine[stage + 1 :]], theirs),
            lambda at, stage=stage: naive_attention([*mine[:stage], at, *mine[stage + 1 :]], theirs),
            mine[stage],
        )
    assert attention_transfer(theirs, [3 * value for value in theirs]).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, maps = torch.randn(6, 5).to(dtype), torch.randn(6, 4, 3, 3).to(dtype)
    assert class_balance(logits).dtype == activation(logits).dtype == torch.float32
    assert attention_transfer([maps], [maps]).dtype == torch.float32
    torch.testing.assert_close(class_balance(logits), class_balance(logits.double()).float(), rtol=1e-5, atol=1e-6)
