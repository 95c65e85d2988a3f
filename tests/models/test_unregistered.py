"""`unregistered`: a module that is called through its holder and belongs to another."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dfkd_fast.models.teacher import unregistered


class Holder(nn.Module):
    def __init__(self, *others: nn.Module) -> None:
        super().__init__()
        self.own = nn.Linear(2, 2)
        self.others = unregistered(*others)


def test_the_holder_neither_registers_nor_moves_nor_trains_them() -> None:
    first, second = nn.Linear(3, 2), nn.Dropout()
    holder = Holder(first, second)
    assert list(holder.children()) == [holder.own]
    assert set(holder.state_dict()) == {"own.weight", "own.bias"}
    holder.double().eval()
    assert first.weight.dtype == torch.float32
    assert second.training
    assert holder.others == (first, second)


def test_gradients_flow_through_them() -> None:
    other = nn.Linear(3, 2)
    x = torch.randn(4, 3, requires_grad=True)
    Holder(other).others[0](x).sum().backward()
    torch.testing.assert_close(x.grad, other.weight.detach().sum(0).expand(4, 3))


def test_a_copied_holder_copies_them_with_what_it_shares() -> None:
    """As with any attribute: a deep copy stays consistent within itself."""
    other = nn.Linear(3, 2)
    pair = copy.deepcopy(nn.ModuleList([other, Holder(other)]))
    assert pair[0] is not other
    assert pair[1].others[0] is pair[0]
