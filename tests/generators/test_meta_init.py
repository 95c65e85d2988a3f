"""MetaInit against the release's way: a clone of the generator each round and torch's Adam on the original."""

from __future__ import annotations

import copy

import pytest
import torch

from dfkd_fast.generators.latent import LatentGenerator
from dfkd_fast.generators.meta_init import MetaInit, Start

STEPS, ROUNDS, LR, LATENT_LR = 3, 3, 0.02, 0.0


History = list[list[torch.Tensor]]


def generator() -> LatentGenerator:
    torch.manual_seed(0)
    return LatentGenerator(2, 3, 8, width=4).double()


def make(model: LatentGenerator, start: Start, *, decay: float = 0.0) -> MetaInit:
    return MetaInit(model, start, lr=LR, own_lrs={"latents": LATENT_LR}, decay=decay).double()


def inner_loss(model: LatentGenerator, round_index: int, step: int) -> torch.Tensor:
    return (model() - (round_index + 0.1 * step)).square().sum()


def naive(start: Start, *, forget_before: int | None = None, decay: float = 0.0) -> History:
    """The start's weights after each round."""
    weights = generator()
    groups = [{"params": [p], "lr": LATENT_LR if p is weights.latents else LR} for p in weights.parameters()]
    outer = torch.optim.Adam(groups, betas=(0.5, 0.999))
    history = []
    for index in range(ROUNDS):
        if index == forget_before:
            outer = torch.optim.Adam(groups, betas=(0.5, 0.999))
        clone = copy.deepcopy(weights)
        inner = torch.optim.Adam(clone.parameters(), lr=0.05, betas=(0.5, 0.999))
        outer.zero_grad()
        for step in range(STEPS):
            inner.zero_grad()
            inner_loss(clone, index, step).backward()
            if start == "fomaml":
                for p, q in zip(weights.parameters(), clone.parameters(), strict=True):
                    p.grad = q.grad.clone() if p.grad is None else p.grad + q.grad
            inner.step()
        if start == "reptile":
            for p, q in zip(weights.parameters(), clone.parameters(), strict=True):
                p.grad = 67 * (p.detach() - q.detach())
        if decay:
            (decay * sum(p.square().sum() for p in weights.parameters()) / 2).backward()
        outer.step()
        history.append([p.detach().clone() for p in weights.parameters()])
    return history


def run(start: MetaInit, adapted: LatentGenerator, rounds: range, *, forget_before: int | None = None) -> History:
    inner = torch.optim.Adam(adapted.parameters(), lr=0.05, betas=(0.5, 0.999))
    history = []
    for index in rounds:
        if index == forget_before:
            start.reset_optimizer()
        inner.state.clear()
        start.begin()
        for step in range(STEPS):
            inner.zero_grad()
            inner_loss(adapted, index, step).backward()
            inner.step()
            start.after_step()
        start.finish()
        history.append([p.detach().clone() for p in start.weights.parameters()])
    return history


@pytest.mark.parametrize("rule", ["fomaml", "reptile"])
@pytest.mark.parametrize(("forget_before", "decay"), [(None, 0.0), (1, 0.0), (None, 0.3)])
def test_a_learned_start_equals_the_naive_version(rule: Start, forget_before: int | None, decay: float) -> None:
    """Float64, 1e-9, after each of three rounds; the latents, at learning rate 0, stay."""
    adapted = generator()
    start = make(adapted, rule, decay=decay)
    found = run(start, adapted, range(ROUNDS), forget_before=forget_before)
    for ours, theirs in zip(found, naive(rule, forget_before=forget_before, decay=decay), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    names = [name for name, _ in adapted.named_parameters()]
    moved = {name for name, a, b in zip(names, found[0], found[2], strict=True) if not torch.equal(a, b)}
    assert moved == set(names) - {"latents"}


def test_bias_correction_is_accurate_in_float32() -> None:
    """1 - beta^steps in float32 would be off by 5e-5 at the first step, and with it the size of the step."""
    adapted = generator().float()
    with torch.no_grad():
        for p in adapted.parameters():
            p.zero_()  # so that a weight is the sum of its steps
    start = MetaInit(adapted, "reptile", lr=1.0, reptile_scale=-1.0)
    start.begin()
    with torch.no_grad():
        for p in adapted.parameters():
            p.fill_(2.0)
    start.finish()
    for p in start.weights.parameters():
        torch.testing.assert_close(p, torch.full_like(p, -1.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", ["carry", "fresh"])
def test_starts_that_nothing_is_learned_for(rule: Start) -> None:
    """Rounds go on with the generator's own weights, or with new ones; no second set is kept or saved."""
    adapted = generator()
    start = make(adapted, rule)
    run(start, adapted, range(1))
    before = [p.detach().clone() for p in adapted.parameters()]
    start.begin()
    same = [torch.equal(p, b) for p, b in zip(adapted.parameters(), before, strict=True) if p.dim() > 1]
    assert all(same) if rule == "carry" else not any(same)
    assert start.weights is adapted
    start.reset_optimizer()  # there is nothing to forget
    assert not start.state_dict()


@pytest.mark.parametrize(
    ("rule", "reset_epoch", "expected"),
    [("fomaml", 2, [4]), ("reptile", 1, [3]), ("carry", 2, [4]), ("fomaml", 0, []), ("fresh", 2, [])],
)
def test_first_layers_are_drawn_anew_in_one_epoch(rule: Start, reset_epoch: int, expected: list[int]) -> None:
    """Warm-up 3 + 2, counted from 1, is epoch 4 of ours. With "fresh" not a random number is drawn for it."""
    start = make(generator(), rule)
    drawn = []
    for epoch in range(7):
        before = {name: value.clone() for name, value in start.weights.state_dict().items()}
        random = torch.get_rng_state()
        start.reset_once(epoch, warmup_epochs=3, reset_epoch=reset_epoch)
        changed = {name for name, value in start.weights.state_dict().items() if not torch.equal(value, before[name])}
        assert bool(changed) != torch.equal(torch.get_rng_state(), random)
        if changed:
            assert changed == {"decoder.stem.weight", "decoder.stem.bias", "decoder.layers.norm0.weight"}
            drawn.append(epoch)
    assert drawn == expected


def test_a_step_that_the_loss_scaler_skips_does_not_count() -> None:
    adapted = generator()
    start = make(adapted, "fomaml")
    start.begin()
    inner_loss(adapted, 0, 0).backward()
    start.after_step()
    expected = [p.grad.clone() for p in start.weights.parameters()]
    adapted.latents.grad[0] = torch.inf
    start.after_step()
    assert all(torch.equal(p.grad, e) for p, e in zip(start.weights.parameters(), expected, strict=True))


def test_state_is_all_that_a_resumed_run_needs() -> None:
    """Rounds 1 and 2 after a restore equal those of the run that was not stopped, bit for bit."""
    whole = generator()
    start = make(whole, "fomaml")
    run(start, whole, range(1))
    saved = {name: value.clone() for name, value in start.state_dict().items()}
    expected = run(start, whole, range(1, 3))
    other = generator()
    resumed = make(other, "fomaml")
    resumed.load_state_dict(saved)
    for ours, theirs in zip(run(resumed, other, range(1, 3)), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
