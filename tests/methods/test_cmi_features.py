"""The feature bank: a ring, drawn from without replacement, filled rows first; the head's unit vectors."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dfkd_fast.methods.cmi.instance_features import FeatureBank, ProjectionHead


def numbered(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, 2)


def test_bank_is_a_ring() -> None:
    bank = FeatureBank(5, 2)
    bank.add(numbered(1, 3))
    assert bank.rows[:, 0].tolist() == [1, 2, 3, 0, 0]
    bank.add(numbered(4, 3))
    assert bank.rows[:, 0].tolist() == [6, 2, 3, 4, 5]
    assert int(bank.written) == 6


def test_draws_have_a_static_shape_and_take_filled_rows_first() -> None:
    torch.manual_seed(0)
    bank = FeatureBank(8, 2)
    rows, is_filled = bank.sample(4)
    assert rows.shape == (4, 2)
    assert not is_filled.any()
    bank.add(numbered(1, 3))
    rows, is_filled = bank.sample(4)
    assert rows.shape == (4, 2)
    assert sorted(rows[is_filled, 0].tolist()) == [1, 2, 3]
    assert bank.sample(100)[0].shape == (8, 2)


def test_draws_are_uniform_and_without_replacement() -> None:
    torch.manual_seed(0)
    bank = FeatureBank(8, 2)
    bank.add(numbered(0, 6))
    counts = torch.zeros(6)
    for _ in range(600):
        rows, is_filled = bank.sample(3)
        assert is_filled.all()
        assert len(set(rows[:, 0].tolist())) == 3
        counts[rows[:, 0].long()] += 1
    assert (counts - 300).abs().max() < 60  # five standard deviations of a binomial with n = 600, p = 1/2


def test_bank_is_saved_whole() -> None:
    bank = FeatureBank(4, 2)
    bank.add(numbered(1, 3))
    copy = FeatureBank(4, 2)
    copy.load_state_dict(bank.state_dict())
    assert torch.equal(copy.rows, bank.rows)
    assert int(copy.written) == 3


def test_projections_have_length_one() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(6, 3)
    assert torch.allclose(head(torch.randn(5, 6)).norm(dim=1), torch.ones(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(5, 6)).dtype == torch.float32


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_stored_features_follow_and_cost_no_gradient(needs_gradient: bool) -> None:
    """In float64 to 1e-12 what one product over all rows gives, without the gradient of the stored rows."""
    torch.manual_seed(0)
    head = ProjectionHead(8, 3).double()
    new = torch.randn(2, 8, dtype=torch.float64, requires_grad=needs_gradient)
    stored = torch.randn(5, 16, dtype=torch.float64).chunk(2, dim=1)[0]
    with FlopCounterMode(display=False) as ours:
        projected = head(new, stored)
        assert projected.shape == (7, 3)
        weights = torch.randn(7, 3, dtype=torch.float64)
        (projected * weights).sum().backward()
    values = [*head.parameters(), *([new] if needs_gradient else [])]
    found = [value.grad for value in values]
    whole = head(torch.cat([new, stored]))
    torch.testing.assert_close(projected, whole, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad((whole * weights).sum(), values)
    torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-12)
    layers = 2 * (8 * 8 + 8 * 3)
    forward_and_weights, gradients = 2 * 7 * layers, 7 * 2 * 8 * 3 + (2 * 2 * 8 * 8 if needs_gradient else 0)
    assert ours.get_total_flops() == forward_and_weights + gradients
