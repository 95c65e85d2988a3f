"""PrioritySampler: exact sums, exact probabilities, no empty slot, at any capacity and on every backend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_contract import BACKENDS, DEVICE, running_on
from priority_trees import check_tree, filled, tree

from dfkd_kernels import PrioritySampler
from dfkd_kernels.priority import ops, reference
from dfkd_kernels.priority.reference import FANOUT

# one slot; below, at and above one block, one full level, two levels
CAPACITIES = (1, 63, 64, 65, 64**2, 64**2 + 1, 64**3 + 1)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "priority") as name:
        yield name


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_update_keeps_the_tree_exact(backend, capacity):
    sampler = PrioritySampler(capacity, alpha=0.7, eps=1e-3, device=DEVICE)
    expected = torch.zeros(capacity, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        slots = torch.randperm(capacity, generator=generator)[:40]
        deltas = torch.randn(len(slots), generator=generator)
        sampler.update(slots.to(DEVICE), deltas.to(DEVICE))
        expected[slots] = (deltas.double().abs() + 1e-3) ** 0.7
    torch.testing.assert_close(sampler.leaves[:capacity].cpu().double(), expected, rtol=1e-5, atol=0)
    check_tree(sampler)
    emptied = torch.randperm(capacity, generator=generator)[:20]
    sampler.clear(emptied.to(DEVICE))
    assert not sampler.leaves[emptied].any()
    check_tree(sampler)


def test_a_repeated_slot_gets_the_largest(backend):
    sampler = PrioritySampler(100, alpha=1.0, eps=1e-3, device=DEVICE)
    indices = torch.tensor([5, 9, 5, 70, 5, 9], device=DEVICE)
    sampler.update(indices, torch.tensor([1.0, -4.0, -3.0, 0.5, 2.0, 1.0], device=DEVICE))
    torch.testing.assert_close(sampler.leaves[[5, 9, 70]].cpu(), torch.tensor([3.001, 4.001, 0.501]))
    assert sampler.counts[-FANOUT:].sum() == 3
    check_tree(sampler)


def test_more_rows_than_one_program_takes(backend):
    """The Triton form then takes one launch per level; every slot twice, the larger delta first or last."""
    sampler = PrioritySampler(64**2 + 1, alpha=1.0, eps=1.0, device=DEVICE)
    slots = torch.randperm(550, generator=torch.Generator().manual_seed(0)).to(DEVICE) * 7
    indices = torch.cat([slots, slots])
    sampler.update(indices, torch.cat([slots % 2, (slots + 1) % 2]).float())
    assert (sampler.leaves[slots] == 2).all()
    assert sampler.counts[-FANOUT:].sum() == 550
    check_tree(sampler)
    sampler.clear(indices)
    assert not sampler.leaves.any()
    check_tree(sampler)


def test_many_rows_at_once(backend):
    """The bulk load of a pool takes a third road in the Triton form."""
    rows = ops.MAX_TRITON_ROWS + 1
    sampler = PrioritySampler(rows, alpha=1.0, eps=1.0, device=DEVICE)
    indices = torch.arange(rows, device=DEVICE)
    sampler.update(torch.cat([indices, indices[:5]]), torch.cat([indices / rows, torch.full_like(indices[:5], 7.0)]))
    assert (sampler.leaves[:5] == 8).all()
    check_tree(sampler)


def test_deltas_that_are_not_finite_count_as_zero(backend):
    sampler = PrioritySampler(10, alpha=0.5, eps=1e-4, device=DEVICE)
    deltas = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0], device=DEVICE)
    sampler.update(torch.arange(4, device=DEVICE), deltas)
    torch.testing.assert_close(sampler.leaves[:4].cpu(), torch.full((4,), 1e-2))
    check_tree(sampler)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # numpy, in Triton's interpreter
def test_leaves_stay_positive_and_finite(backend):
    sampler = PrioritySampler(10, alpha=12.0, eps=1e-6, device=DEVICE)
    sampler.update(torch.arange(2, device=DEVICE), torch.tensor([0.0, 1e6], device=DEVICE))
    assert (sampler.leaves[:2] > 0).all()
    assert sampler.leaves.isfinite().all()
    check_tree(sampler)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_deltas_of_any_float(backend, dtype):
    sampler = PrioritySampler(10, alpha=1.0, eps=0.5, device=DEVICE)
    sampler.update(torch.tensor([3], device=DEVICE), torch.tensor([-0.25], dtype=dtype, device=DEVICE))
    assert sampler.leaves[3] == 0.75


def test_draws_follow_the_priorities(backend):
    """Chi-square over 129 slots in three blocks at a fixed seed: the statistic's mean is 128, its deviation 16."""
    draws = 4_000 if backend == "triton" and DEVICE == "cpu" else 200_000  # the interpreter is slow
    sampler = filled(129, alpha=1.0, eps=0.1)
    indices, _ = sampler.sample(draws, torch.Generator(DEVICE).manual_seed(0))
    counts = torch.bincount(indices, minlength=129).double()
    expected = sampler.leaves[:129].double() / sampler.leaves.double().sum() * draws
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    assert 128 - 4 * 16 < statistic < 128 + 4 * 16


def test_backends_draw_the_same_slots(backend):
    sampler = filled(64**2 + 1, torch.arange(0, 64**2 + 1, 3), beta=0.5)
    uniforms = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    indices, is_weights = ops.sample(*tree(sampler), uniforms, 0.5, backend)
    expected, weights = ops.sample(*tree(sampler), uniforms, 0.5, "reference")
    assert torch.equal(indices, expected)
    torch.testing.assert_close(is_weights, weights, rtol=1e-6, atol=0)
    leaves = sampler.leaves.double()
    bounds = (leaves.cumsum(0) / leaves.sum()).cpu()
    assert torch.equal(indices.cpu(), torch.searchsorted(bounds, uniforms.cpu(), right=True))


def test_importance_weights(backend):
    sampler = filled(500, torch.arange(0, 500, 7), alpha=0.6, beta=0.4)
    indices, is_weights = sampler.sample(64)
    leaves = sampler.leaves.double()
    slots = (leaves > 0).sum()
    expected = (slots * leaves[indices] / leaves.sum()) ** -0.4
    assert is_weights.dtype == torch.float32
    torch.testing.assert_close(is_weights.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_only_filled_slots_are_drawn(backend, capacity):
    """Also for the uniforms next to 0, to 1 and to each slot's bounds, where rounding could step over the edge."""
    slots = torch.randperm(capacity, generator=torch.Generator().manual_seed(2))[:3].sort().values
    sampler = filled(capacity, slots)
    leaves = sampler.leaves.double().cpu()
    bounds = leaves[slots].cumsum(0) / leaves.sum()
    edges = [0.0, 5e-324, 1 - 2.0**-53, *bounds.tolist()]
    edges += [torch.tensor(edge).double().nextafter(torch.tensor(side)).item() for edge in edges for side in (0.0, 1.0)]
    uniforms = torch.tensor([edge for edge in edges if edge < 1], dtype=torch.float64, device=DEVICE)
    indices, is_weights = ops.sample(*tree(sampler), uniforms, 0.4, backend)
    assert set(indices.tolist()) <= set(slots.tolist())
    assert is_weights.isfinite().all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9000), st.data())
def test_any_history_of_updates_and_clears(capacity, data):
    """Random histories against a plain dictionary; what is cleared is never drawn, what is drawn is filled."""
    seed = data.draw(st.integers(0, 2**31 - 1))
    steps = data.draw(st.lists(st.tuples(st.booleans(), st.integers(1, 20)), min_size=1, max_size=5))
    for name in BACKENDS:
        try:
            with running_on(name, "priority"):
                _check_history(capacity, seed, steps)
        except pytest.skip.Exception:
            continue


def _check_history(capacity, seed, steps):
    generator = torch.Generator().manual_seed(seed)
    sampler, slots = PrioritySampler(capacity, alpha=1.0, eps=1e-3, device=DEVICE), set()
    for is_clear, n in steps:
        indices = torch.randint(0, capacity, (n,), generator=generator)
        if is_clear:
            sampler.clear(indices.to(DEVICE))
            slots -= set(indices.tolist())
        else:
            sampler.update(indices.to(DEVICE), torch.rand(n, generator=generator).to(DEVICE))
            slots |= set(indices.tolist())
    check_tree(sampler)
    assert sampler.counts[-FANOUT:].sum() == len(slots)
    if slots:
        drawn, is_weights = sampler.sample(50)
        assert set(drawn.tolist()) <= slots
        assert is_weights.isfinite().all()


def test_a_hundred_million_slots(backend):
    """Above 2^24, where float32 sums and torch.multinomial give up: neighbours are told apart."""
    capacity = 10**8
    slots = torch.tensor([0, 2**24, 2**24 + 1, capacity - 2, capacity - 1])
    sampler = PrioritySampler(capacity, alpha=1.0, eps=1e-3, device=DEVICE)
    sampler.update(slots.to(DEVICE), torch.tensor([4.0, 1.0, 1.0, 1.0, 1.0], device=DEVICE))
    indices, _ = sampler.sample(2000, torch.Generator(DEVICE).manual_seed(0))
    assert set(indices.tolist()) == set(slots.tolist())
    fractions = torch.stack([(indices == slot).double().mean() for slot in slots.to(DEVICE)])
    torch.testing.assert_close(fractions.cpu(), torch.tensor([4.0, 1, 1, 1, 1]).double() / 8, rtol=0, atol=0.05)


def test_a_tiny_priority_among_large_ones_is_not_lost(backend):
    """2^20 leaves of 1 and one of 2^-10: a float32 running sum would swallow it."""
    capacity = 2**20
    sampler = PrioritySampler(capacity, alpha=1.0, eps=2.0**-20, device=DEVICE)
    sampler.leaves.fill_(1.0)
    sampler.leaves[777] = 2.0**-10
    firsts = torch.arange(0, capacity, FANOUT, device=DEVICE)  # writing one slot of a block sums the whole block up
    reference.write(*tree(sampler), firsts, sampler.leaves[firsts])
    total = capacity - 1 + 2.0**-10
    inside = torch.tensor([(777 + 2.0**-11) / total], dtype=torch.float64, device=DEVICE)
    indices, _ = ops.sample(*tree(sampler), inside, 0.4, backend)
    assert indices.tolist() == [777]
