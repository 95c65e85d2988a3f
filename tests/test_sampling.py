"""Samplers: what is drawn how often, and that a state of two numbers resumes them exactly."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd_fast.sampling import BalancedSampler, ByPriority, EpochShuffle, Sampler, UniformSampler
from dfkd_kernels import PrioritySampler


def drawn(sampler: Sampler, batches: int) -> torch.Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *(sampler.draw().slots for _ in range(batches))])


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), batch_size=st.integers(1, 50), epochs=st.integers(1, 4), seed=st.integers(0, 5))
def test_every_image_comes_once_before_any_comes_again(size: int, batch_size: int, epochs: int, seed: int) -> None:
    sampler = EpochShuffle(size, batch_size, seed=seed)
    slots = drawn(sampler, -(-size * epochs // batch_size))
    assert len(slots) % batch_size == 0
    for epoch in range(epochs):
        assert sorted(slots[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


def test_epochs_differ_and_seeds_differ() -> None:
    first, again, other = (drawn(EpochShuffle(50, 50, seed=seed), 2).view(2, 50) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def priorities() -> PrioritySampler:
    tree = PrioritySampler(100)
    tree.update(torch.arange(100), torch.linspace(0.1, 3, 100))
    return tree


SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "shuffle": lambda seed: EpochShuffle(100, 7, seed=seed),
    "uniform": lambda seed: UniformSampler(torch.tensor(100), 7, seed=seed),
    "balanced": lambda seed: BalancedSampler(torch.arange(100) % 3, 7, seed=seed),
    "priority": lambda seed: ByPriority(priorities(), 7, seed=seed),
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("before", [0, 3, 20])
def test_resume_is_exact(make: Callable[[int], Sampler], before: int) -> None:
    sampler, again = make(5), make(6)
    drawn(sampler, before)
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = drawn(sampler, 30)
    drawn(again, 2)
    torch.rand(3)  # the default generator has no part in it
    again.load_state_dict(state)
    assert torch.equal(drawn(again, 30), expected)


def test_the_seed_is_by_default_the_one_of_the_phase() -> None:
    torch.manual_seed(17)
    torch.rand(5)
    assert EpochShuffle(9, 3).seed == 17


def test_uniform_draws_every_slot_equally_often() -> None:
    counts = drawn(UniformSampler(torch.tensor(20), 1000, seed=0), 100).bincount(minlength=20)
    assert len(counts) == 20
    assert ((counts - 5000) ** 2 / 5000).sum() < 50  # chi-squared, 19 degrees of freedom: 1 in 10,000 is above


def test_uniform_follows_a_pool_that_grows() -> None:
    size = torch.tensor(1)
    sampler = UniformSampler(size, 50, seed=0)
    assert not sampler.draw().slots.any()
    size.fill_(1000)
    assert sampler.draw().slots.max() > 500


def test_balanced_draws_each_class_equally_often_whatever_there_is_of_it() -> None:
    labels = torch.tensor([4] * 90 + [0] * 9 + [2] + [-1] * 50)[torch.randperm(150)]
    sampler = BalancedSampler(labels, 32, seed=0)
    slots = [sampler.draw().slots for _ in range(300)]
    for batch in slots:
        counts = labels[batch].bincount(minlength=5)
        assert counts[[0, 2, 4]].min() >= 10
        assert counts[[1, 3]].sum() == 0
    seen = torch.cat(slots).bincount(minlength=150)
    assert not seen[labels < 0].any()
    assert seen[labels >= 0].min() > 0
    common = seen[labels == 4]
    expected = common.sum() / 90
    assert ((common - expected) ** 2 / expected).sum() < 150  # chi-squared, 89 degrees of freedom


def test_an_empty_pool_says_so() -> None:
    with pytest.raises(ValueError, match="the pool is empty"):
        EpochShuffle(0, 4)
    with pytest.raises(ValueError, match="the pool is empty"):
        BalancedSampler(torch.full((5,), -1), 4)


def test_priorities_decide_and_weights_correct_them() -> None:
    tree = PrioritySampler(4, alpha=1, beta=1, eps=1e-9)
    tree.update(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    sampler = ByPriority(tree, 10_000, seed=0)
    draw = sampler.draw()
    share = draw.slots.bincount(minlength=4) / 10_000
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), rtol=0, atol=0.02)
    assert draw.is_weights is not None
    torch.testing.assert_close(draw.is_weights, 1 / (4 * torch.tensor([0.1, 0.2, 0.3, 0.4])[draw.slots]))
