"""The mode that rejects host reads: what it must catch, and what it must let pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sync_free import HostReadError, sync_free
from torch import Tensor

READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "bool": lambda x: bool(x[0] > 0),
    "branch": lambda x: 1 if x.sum() > 0 else 2,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "format": lambda x: f"{x[0]:.2f}",
    "slice by a tensor": lambda x: x[: torch.ones((), dtype=torch.int64)],
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "mask": lambda x: x[x > 1],
    "mask written to": lambda x: x.clone().__setitem__(x > 1, torch.zeros(())),
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "bincount": lambda x: x.long().bincount(),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "new constant": lambda x: x * torch.tensor([1.0, 2.0, 3.0]),
    "new_tensor": lambda x: x + x.new_tensor(1.0),
    "isfinite": lambda x: bool(torch.isfinite(x).all()),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_rejects(read: Callable[[Tensor], object]) -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    read(x)  # it does work outside
    with sync_free(), pytest.raises(HostReadError):
        read(x)


def test_lets_a_training_step_pass() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    x, labels = torch.randn(5, 3), torch.randint(0, 4, (5,))
    adam = torch.optim.Adam([weight], fused=True)
    best = torch.zeros(())
    with sync_free():
        for _ in range(2):
            loss = torch.nn.functional.cross_entropy(x @ weight, labels)
            loss.backward()
            adam.step()
            best = torch.where(loss < best, loss.detach(), best)
            rows = x[torch.randperm(5)][:2].masked_fill(x[:2] > 0, 0.0)
    assert rows.shape == (2, 3)
