"""PrioritySampler keeps what every operator keeps: the same bits, untouched inputs, its state, named mistakes."""

import pytest
import torch
from operator_contract import BACKENDS, DEVICE, check_capturable, needs_gpu, running_on
from priority_trees import filled, tree

from dfkd_kernels import PrioritySampler
from dfkd_kernels.priority import ops


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "priority") as name:
        yield name


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
