"""Samplers to test with, and what must hold for the tree of each."""

import torch
from operator_contract import DEVICE

from dfkd_kernels import PrioritySampler
from dfkd_kernels.priority import reference
from dfkd_kernels.priority.reference import FANOUT, level_sizes


def filled(capacity, slots=None, *, seed=0, **options):
    """A sampler whose `slots` (all by default) hold random deltas, written by the reference, whatever is under test."""
    sampler = PrioritySampler(capacity, device=DEVICE, **options)
    slots = torch.arange(capacity) if slots is None else slots
    deltas = torch.rand(len(slots), generator=torch.Generator().manual_seed(seed)) ** 3
    reference.update(*tree(sampler), slots.to(DEVICE), deltas.to(DEVICE), sampler.alpha, sampler.eps)
    return sampler


def tree(sampler):
    return sampler.leaves, sampler.sums, sampler.counts, sampler.capacity


def check_tree(sampler):
    """Every level is the sum and the count of the level below; padding is empty."""
    children, fills = sampler.leaves.double(), (sampler.leaves > 0).long()
    sizes = level_sizes(sampler.capacity)
    for sums, counts in zip(sampler.sums.split(sizes), sampler.counts.split(sizes), strict=True):
        blocks = children.view(-1, FANOUT).sum(1)
        torch.testing.assert_close(sums[: len(blocks)], blocks, rtol=1e-14, atol=0)
        assert torch.equal(counts[: len(blocks)], fills.view(-1, FANOUT).sum(1))
        assert not sums[len(blocks) :].any()
        assert not counts[len(blocks) :].any()
        children, fills = sums, counts
    assert not sampler.leaves[sampler.capacity :].any()
