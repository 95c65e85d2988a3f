"""MetaLearner against the releases' way: a clone of the generator each round and torch's Adam on the original."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dfkd_fast.generators.meta import MetaLearner, MetaRule

STEPS, ROUNDS, LRS = 4, 3, (0.02, 0.01, 0.03, 0.0)
INPUT = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)


def generator() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def inner_loss(model: nn.Module, round_index: int, step: int) -> torch.Tensor:
    return (model(INPUT) - (round_index + 0.1 * step)).square().mean()


def naive(rule: MetaRule, *, forget_before: int | None = None) -> list[list[torch.Tensor]]:
    """The start's weights after each round."""
    start = generator()
    groups = [{"params": [p], "lr": lr} for p, lr in zip(start.parameters(), LRS, strict=True)]
    outer = torch.optim.Adam(groups, betas=(0.5, 0.999))
    history = []
    for index in range(ROUNDS):
        if index == forget_before:
            outer = torch.optim.Adam(groups, betas=(0.5, 0.999))
        clone = copy.deepcopy(start)
        inner = torch.optim.Adam(clone.parameters(), lr=0.05, betas=(0.5, 0.999))
        outer.zero_grad()
        for step in range(STEPS):
            inner.zero_grad()
            inner_loss(clone, index, step).backward()
            if rule == "fomaml":
                for p, q in zip(start.parameters(), clone.parameters(), strict=True):
                    p.grad = q.grad.clone() if p.grad is None else p.grad + q.grad
            inner.step()
        if rule == "reptile":
            for p, q in zip(start.parameters(), clone.parameters(), strict=True):
                p.grad = 67 * (p.detach() - q.detach())
        outer.step()
        history.append([p.detach().clone() for p in start.parameters()])
    return history


def run(meta: MetaLearner, adapted: nn.Module, *, forget_before: int | None = None) -> list[list[torch.Tensor]]:
    inner = torch.optim.Adam(adapted.parameters(), lr=0.05, betas=(0.5, 0.999))
    history = []
    for index in range(ROUNDS):
        if index == forget_before:
            meta.forget()
        inner.state.clear()
        meta.begin()
        for step in range(STEPS):
            inner.zero_grad()
            inner_loss(adapted, index, step).backward()
            inner.step()
            meta.after_step()
        meta.finish()
        history.append([p.detach().clone() for p in meta.start.parameters()])
    return history


@pytest.mark.parametrize("rule", ["fomaml", "reptile"])
@pytest.mark.parametrize("forget_before", [None, 1])
def test_equals_the_naive_version(rule: MetaRule, forget_before: int | None) -> None:
    """Float64, 1e-9, after each of three rounds, with one learning rate per parameter, one of them 0."""
    adapted = generator()
    meta = MetaLearner(adapted, rule=rule, lrs=LRS).double()
    found = run(meta, adapted, forget_before=forget_before)
    for ours, theirs in zip(found, naive(rule, forget_before=forget_before), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert not torch.equal(found[0][0], found[2][0])
    assert torch.equal(found[0][3], found[2][3])  # learning rate 0


def test_float32_bias_correction_is_accurate() -> None:
    """1 - beta^steps in float32 would be off by 5e-5 at the first step, and with it the size of the step."""
    adapted = generator().float()
    with torch.no_grad():
        for p in adapted.parameters():
            p.zero_()  # so that a weight is the sum of its steps
    meta = MetaLearner(adapted, rule="reptile", lrs=(1.0,) * 4, reptile_scale=-1.0)
    meta.begin()
    with torch.no_grad():
        for p in adapted.parameters():
            p.fill_(2.0)
    meta.finish()
    for p in meta.start.parameters():
        torch.testing.assert_close(p, torch.full_like(p, -1.0), rtol=1e-6, atol=0)


def test_none_goes_on_with_the_adapted_weights() -> None:
    adapted = generator()
    meta = MetaLearner(adapted, rule="none", lrs=LRS).double()
    start = copy.deepcopy(meta.start)
    run(meta, adapted)
    assert all(torch.equal(p, q) for p, q in zip(meta.start.parameters(), start.parameters(), strict=True))
    assert not torch.equal(adapted[0].weight, meta.start[0].weight)


def test_a_step_that_the_loss_scaler_skips_does_not_count() -> None:
    adapted = generator()
    meta = MetaLearner(adapted, rule="fomaml", lrs=LRS).double()
    meta.begin()
    inner_loss(adapted, 0, 0).backward()
    meta.after_step()
    expected = [p.grad.clone() for p in meta.start.parameters()]
    adapted[2].bias.grad[0] = torch.inf
    meta.after_step()
    assert all(torch.equal(p.grad, e) for p, e in zip(meta.start.parameters(), expected, strict=True))


def test_state_is_all_that_a_resumed_run_needs() -> None:
    """Rounds 1 and 2 after a restore equal those of the run that was not stopped, bit for bit."""
    whole = generator()
    meta = MetaLearner(whole, rule="fomaml", lrs=LRS).double()
    saved: dict[str, torch.Tensor] = {}
    begin = meta.begin

    def begin_and_save() -> None:
        if not saved and meta.steps == 1:
            saved.update({name: value.clone() for name, value in meta.state_dict().items()})
        begin()

    meta.begin = begin_and_save
    expected = run(meta, whole)
    other = generator()
    resumed = MetaLearner(other, rule="fomaml", lrs=LRS).double()
    resumed.load_state_dict(saved)
    inner = torch.optim.Adam(other.parameters(), lr=0.05, betas=(0.5, 0.999))
    for index in (1, 2):
        inner.state.clear()
        resumed.begin()
        for step in range(STEPS):
            inner.zero_grad()
            inner_loss(other, index, step).backward()
            inner.step()
            resumed.after_step()
        resumed.finish()
        assert all(torch.equal(p, e) for p, e in zip(resumed.start.parameters(), expected[index], strict=True))
