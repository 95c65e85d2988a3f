"""PrioritySampler: exact sums, exact probabilities, no empty slot, at any capacity and on every backend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_contract import BACKENDS, DEVICE, check_capturable, needs_gpu, running_on

from dfkd_kernels import PrioritySampler
from dfkd_kernels.priority import ops, reference
from dfkd_kernels.priority.reference import FANOUT, level_sizes

# one slot; below, at and above one block, one full level, two levels
CAPACITIES = (1, 63, 64, 65, 64**2, 64**2 + 1, 64**3 + 1)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "priority") as name:
        yield name


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


def test_generator_repeats_the_draw(backend):
    sampler = filled(1000)
    first, second = (sampler.sample(20, torch.Generator(DEVICE).manual_seed(4)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_updates_give_the_same_bits(backend):
    first, second = filled(500), filled(500)
    for sampler in (first, second):
        generator = torch.Generator(DEVICE).manual_seed(3)
        indices = torch.randint(0, 500, (100,), generator=generator, device=DEVICE)
        sampler.update(indices, torch.rand(100, generator=generator, device=DEVICE))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_inputs_are_unchanged(backend):
    sampler = PrioritySampler(100, device=DEVICE)
    indices, deltas = torch.tensor([1, 1, 2], device=DEVICE), torch.tensor([0.5, -2.0, 1.0], device=DEVICE)
    versions = indices._version, deltas._version
    sampler.update(indices, deltas)
    sampler.clear(indices)
    assert (indices.tolist(), deltas.tolist()) == ([1, 1, 2], [0.5, -2.0, 1.0])
    assert (indices._version, deltas._version) == versions


def test_deltas_keep_no_graph(backend):
    sampler = PrioritySampler(10, device=DEVICE)
    sampler.update(torch.tensor([1], device=DEVICE), torch.tensor([2.0], device=DEVICE, requires_grad=True))
    assert not sampler.leaves.requires_grad


def test_state_dict_restores_every_bit(backend):
    sampler, other = filled(5000, torch.arange(0, 5000, 2)), filled(5000, seed=9)
    other.load_state_dict({name: tensor.clone() for name, tensor in sampler.state_dict().items()})
    draws = [s.sample(100, torch.Generator(DEVICE).manual_seed(1)) for s in (sampler, other)]
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])


def test_empty_update_does_nothing(backend):
    sampler = filled(100)
    before = sampler.leaves.clone()
    nothing = torch.empty(0, dtype=torch.int64, device=DEVICE)
    sampler.update(nothing, nothing.float())
    sampler.clear(nothing)
    assert torch.equal(sampler.leaves, before)


def test_compiles_in_one_graph(backend):
    sampler, twin = filled(5000), filled(5000)

    def step(sampler):
        indices, is_weights = sampler.sample(8)
        sampler.update(indices, is_weights * 3)
        sampler.clear(indices[:1])
        return indices, is_weights

    torch.manual_seed(5)
    expected = step(twin)
    torch.manual_seed(5)
    actual = torch.compile(step, fullgraph=True, backend="aot_eager")(sampler)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(sampler.leaves, twin.leaves)
    assert torch.equal(sampler.sums, twin.sums)


def test_operators_pass_opcheck(backend):
    sampler = filled(5000)
    indices, deltas = torch.tensor([1, 4999, 1], device=DEVICE), torch.rand(3, device=DEVICE)
    for is_weights in (None, torch.rand(3, device=DEVICE)):
        torch.library.opcheck(ops.update.overload, (*tree(sampler), indices, deltas, is_weights, 0.6, 1e-6, backend))
    torch.library.opcheck(ops.clear.overload, (*tree(sampler), indices, backend))
    uniforms = torch.rand(5, dtype=torch.float64, device=DEVICE)
    torch.library.opcheck(ops.sample.overload, (*tree(sampler), uniforms, 0.4, backend))


@pytest.mark.skipif(DEVICE != "cpu", reason="elsewhere it would need a synchronisation")
def test_an_empty_sampler_says_so(backend):
    sampler = PrioritySampler(100)
    with pytest.raises(ValueError, match="every slot is empty"):
        sampler.sample(4)
    sampler.update(torch.tensor([3]), torch.tensor([1.0]))
    sampler.clear(torch.tensor([3]))
    with pytest.raises(ValueError, match="every slot is empty"):
        sampler.sample(4)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, in Triton's interpreter
@pytest.mark.parametrize("name", ["triton", "native"])
def test_kernels_survive_an_empty_sampler(name):
    """On a GPU nobody looks before the draw: the index must be a slot, and the weight show that something is wrong."""
    with running_on(name, "priority"):
        sampler = PrioritySampler(100, device=DEVICE)
        uniforms = torch.rand(5, dtype=torch.float64, device=DEVICE)
        launch = ops.sample._launch if DEVICE != "cpu" else _draw_unchecked
        indices, is_weights = launch(*tree(sampler), uniforms, 0.4, name)
        assert ((indices >= 0) & (indices < 100)).all()
        assert is_weights.isnan().all()


def _draw_unchecked(*arguments):
    if arguments[-1] == "native":
        return torch.ops.dfkd_native.priority_sample(*arguments[:-1])
    from dfkd_kernels.priority import launch

    return launch.sample(*arguments[:-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity: 0"),
        ({"alpha": -0.1}, "alpha: -0.1"),
        ({"beta": float("nan")}, "beta: nan"),
        ({"eps": 0.0}, "eps: 0.0"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PrioritySampler(**{"capacity": 10, **options})


@pytest.mark.parametrize(
    ("indices", "deltas", "message"),
    [
        (torch.zeros(2, dtype=torch.int32), torch.zeros(2), "indices: dtype"),
        (torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2), "indices: shape"),
        (torch.tensor([0, 10]), torch.zeros(2), r"indices: 10 is outside \[0, 10\)"),
        (torch.tensor([0, -1]), torch.zeros(2), "indices: -1 is outside"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), torch.zeros(2), "indices: on meta"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(3), "deltas: shape"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), "deltas: dtype"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2, device="meta"), "deltas: on meta"),
    ],
)
def test_wrong_arguments_are_named(indices, deltas, message):
    with pytest.raises(ValueError, match=message):
        PrioritySampler(10).update(indices, deltas)


def test_wrong_counts_and_states_are_named():
    sampler = PrioritySampler(100)
    with pytest.raises(ValueError, match="n: 0"):
        sampler.sample(0)
    with pytest.raises(ValueError, match="state: sums is missing"):
        sampler.load_state_dict({"leaves": sampler.leaves})
    with pytest.raises(ValueError, match="capacity 100"):
        sampler.load_state_dict(PrioritySampler(1000).state_dict())


@needs_gpu
@pytest.mark.gpu
def test_cuda_graph(backend):
    sampler = filled(5000)
    uniforms = torch.rand(64, dtype=torch.float64, device=DEVICE)

    def step():
        indices, is_weights = ops.sample(*tree(sampler), uniforms, 0.4, backend)
        sampler.update(indices, torch.ones_like(is_weights))
        return indices, is_weights

    step()  # the second and later steps draw the same: the leaves no longer change
    check_capturable(step)
