"""The contrastive term against a version that takes the filled rows only, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd_fast.methods.cmi.instance_features import instance_discrimination

NEW, STORED = 3, 5


def features() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(2, NEW + STORED, 4, generator=generator, dtype=torch.float64)
    local, whole = F.normalize(made, dim=2).unbind()
    return local.requires_grad_(), whole.requires_grad_()


def naive(local: Tensor, whole: Tensor, kept: list[int], temperature: float) -> Tensor:
    """Every image against every one, in Python: mean over the new, plus mean over the stored ones that count."""
    rows = list(range(NEW)) + [NEW + index for index in kept]
    losses = {}
    for row in rows:
        scores = [(local[row] * whole[other].detach()).sum() / temperature for other in rows]
        own = scores[rows.index(row)]
        losses[row] = sum(torch.exp(score) for score in scores).log() - own
    total = sum(losses[row] for row in range(NEW)) / NEW
    return total + (sum(losses[NEW + index] for index in kept) / len(kept) if kept else 0.0)


@pytest.mark.parametrize("kept", [[], [1, 4], [0, 1, 2, 3, 4]])
def test_instance_discrimination(kept: list[int]) -> None:
    """Without a stored row, with some, with all; the rows that do not count have no influence and no gradient."""
    local, whole = features()
    is_filled = torch.zeros(STORED, dtype=torch.bool)
    is_filled[kept] = True
    ours = instance_discrimination(local, whole, num_new=NEW, is_filled=is_filled, temperature=0.1)
    theirs = naive(local, whole, kept, 0.1)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    found, none = torch.autograd.grad(ours, (local, whole), allow_unused=True)
    (expected,) = torch.autograd.grad(theirs, local)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert none is None
    assert found[:NEW].abs().min() > 0


def test_low_precision_is_summed_in_float32() -> None:
    local, whole = (value.detach().bfloat16() for value in features())
    loss = instance_discrimination(
        local, whole, num_new=NEW, is_filled=torch.ones(STORED, dtype=torch.bool), temperature=0.1
    )
    assert loss.dtype == torch.float32
