"""kd_kl_priority against its parts, kd_kl in float64 and an update of the sampler, on every backend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logit_rows import logits, torch_kl
from operator_contract import (
    BACKENDS,
    DEVICE,
    check_capturable,
    check_compiles,
    needs_cpu,
    needs_gpu,
    running_on,
)

from dfkd_kernels import PrioritySampler, kd_kl_priority
from dfkd_kernels.kd_kl import ops
from dfkd_kernels.priority import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "kd_kl", "priority") as name:
        yield name


@pytest.fixture
def sampler(backend):
    sampler = PrioritySampler(200, alpha=0.7, beta=0.5, eps=1e-3, device=DEVICE)
    sampler.update(torch.arange(50, device=DEVICE), torch.rand(50, device=DEVICE))
    return sampler


def test_is_kd_kl_and_an_update(sampler):
    student, teacher = logits((6, 10), seed=1), logits((6, 10), seed=2)
    indices = torch.tensor([3, 7, 3, 199, 0, 50], device=DEVICE)  # slot 3 twice, 50 and 199 were empty
    is_weights = torch.rand(6, device=DEVICE) + 0.5
    kl = kd_kl_priority(student, teacher, indices, is_weights, sampler, 4.0)
    expected = torch_kl(student, teacher, 4.0)
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=1e-5)
    leaves = (is_weights * expected.float()).detach().add(1e-3) ** 0.7
    leaves[0] = leaves[2] = torch.maximum(leaves[0], leaves[2])
    torch.testing.assert_close(sampler.leaves[indices], leaves, rtol=1e-4, atol=1e-6)
    assert sampler.counts[-64:].sum() == 52
    torch.testing.assert_close(sampler.sums[-64:].sum(), sampler.leaves.double().sum())
    gradients = torch.autograd.grad(kl.sum(), (student, teacher))
    for actual, oracle in zip(gradients, torch.autograd.grad(expected.sum(), (student, teacher)), strict=True):
        torch.testing.assert_close(actual, oracle, rtol=2e-4, atol=1e-5)


# one program's rows; several programs', which share slots; a deeper tree; more rows than one launch takes
DRAWS = [(rows, capacity, dtype) for rows, capacity in ((7, 64), (150, 200), (260, 64**2 + 1)) for dtype in DTYPES]


@pytest.mark.parametrize(("rows", "capacity", "dtype"), [*DRAWS, (1030, 300, torch.float32)])
def test_every_program_sees_the_others_rows(backend, rows, capacity, dtype):
    sampler, expected = _run(rows, capacity, dtype, seed=1)
    torch.testing.assert_close(sampler.leaves, expected.leaves, rtol=1e-4, atol=1e-6)
    assert torch.equal(sampler.counts, expected.counts)
    torch.testing.assert_close(sampler.sums, expected.sums, rtol=1e-4, atol=1e-6)
    blocks = sampler.leaves.double().view(-1, 64).sum(1)  # the sums are those of its own leaves, to the last digits
    torch.testing.assert_close(sampler.sums[: len(blocks)], blocks, rtol=1e-14, atol=0)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 80), st.integers(1, 5000), st.integers(0, 2**31 - 1))
def test_any_draw(rows, capacity, seed):
    for name in BACKENDS[1:]:
        try:
            with running_on(name, "kd_kl", "priority"):
                sampler, expected = _run(rows, capacity, torch.float32, seed)
                torch.testing.assert_close(sampler.leaves, expected.leaves, rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(sampler.sums, expected.sums, rtol=1e-4, atol=1e-6)
        except pytest.skip.Exception:
            continue


def _run(rows, capacity, dtype, seed):
    """A sampler after a draw in which many slots repeat, and its twin after float64 KL and the reference's update."""
    generator = torch.Generator().manual_seed(seed)
    samplers = [PrioritySampler(capacity, alpha=0.7, eps=1e-3, device=DEVICE) for _ in range(2)]
    slots, deltas = torch.arange(0, capacity, 3), torch.rand(-(-capacity // 3), generator=generator)
    for sampler in samplers:
        reference.update(*_tree(sampler), slots.to(DEVICE), 9 + deltas.to(DEVICE), sampler.alpha, sampler.eps)
    indices = torch.randint(0, max(1, min(capacity, rows // 2)), (rows,), generator=generator).to(DEVICE)
    is_weights = (torch.rand(rows, generator=generator) + 0.5).to(DEVICE)
    student, teacher = (logits((rows, 5), dtype, seed=seed + i, requires_grad=False) for i in (1, 2))
    kl = kd_kl_priority(student, teacher, indices, is_weights, samplers[0], 2.0)
    exact = torch_kl(student, teacher, 2.0)
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=1e-5)
    reference.update(*_tree(samplers[1]), indices, is_weights * exact.float(), 0.7, 1e-3)
    return samplers


def _tree(sampler):
    return sampler.leaves, sampler.sums, sampler.counts, sampler.capacity


def test_the_same_bits_on_every_run(backend):
    (first, _), (second, _) = (_run(90, 100, torch.float32, seed=3) for _ in range(2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_inputs_are_unchanged(sampler):
    draw = torch.tensor([3, 3, 60], device=DEVICE), torch.rand(3, device=DEVICE)
    pair = logits((3, 10), seed=1), logits((3, 10), seed=2)
    before = [(tensor.detach().clone(), tensor._version) for tensor in (*pair, *draw)]
    kd_kl_priority(*pair, *draw, sampler)
    for tensor, (values, version) in zip((*pair, *draw), before, strict=True):
        assert torch.equal(tensor.detach(), values)
        assert tensor._version == version


def test_triton_takes_one_launch(monkeypatch):
    from dfkd_kernels.kd_kl import launch

    with running_on("triton", "kd_kl", "priority"):
        monkeypatch.setattr(launch, "forward", None)
        monkeypatch.setattr(launch.tree, "update", None)
        sampler, _ = _run(50, 100, torch.float32, seed=0)
        assert sampler.destination()[3].item() == 0  # ready for the next


def test_float64_logits(sampler):
    student, teacher = logits((2, 10), torch.float64), logits((2, 10), torch.float64, seed=1)
    indices = torch.tensor([1, 2], device=DEVICE)
    kl = kd_kl_priority(student, teacher, indices, torch.ones(2, device=DEVICE), sampler)
    assert kl.dtype == torch.float64
    torch.testing.assert_close(sampler.leaves[1:3], ((kl.detach() + 1e-3) ** 0.7).float())


def test_compiles_in_one_graph(sampler):
    saved = {name: tensor.clone() for name, tensor in sampler.state_dict().items()}
    indices, is_weights = torch.tensor([1, 60, 1, 7], device=DEVICE), torch.ones(4, device=DEVICE)

    def loss(student, teacher):
        return kd_kl_priority(student, teacher, indices, is_weights, sampler, 4.0)

    student, teacher = logits((4, 10), seed=1), logits((4, 10), seed=2)
    loss(student, teacher)
    expected = sampler.leaves.clone()
    sampler.load_state_dict(saved)
    check_compiles(loss, student, teacher)
    torch.testing.assert_close(sampler.leaves, expected)


def test_operator_passes_opcheck(sampler, backend):
    if backend == "reference":
        pytest.skip("the reference is no operator")
    pair = (logits((4, 10), requires_grad=False), logits((4, 10), seed=1, requires_grad=False))
    draw = (torch.tensor([1, 60, 1, 7], device=DEVICE), torch.ones(4, device=DEVICE))
    torch.library.opcheck(ops._priority_forward.overload, (*pair, 4.0, *draw, *sampler.destination(), backend))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": torch.zeros(3, dtype=torch.int64)}, "indices: shape"),
        ({"indices": torch.zeros(4, dtype=torch.int32)}, "indices: dtype"),
        pytest.param({"indices": torch.full((4,), 200)}, r"indices: 200 is outside \[0, 200\)", marks=needs_cpu),
        pytest.param({"indices": torch.full((4,), -1)}, "indices: -1 is outside", marks=needs_cpu),
        ({"indices": torch.zeros(4, dtype=torch.int64, device="meta")}, "indices: on meta"),
        ({"is_weights": torch.ones(4, device="meta")}, "is_weights: on meta"),
        ({"sampler": PrioritySampler(200, device="meta")}, "sampler: on meta"),
        ({"is_weights": torch.ones(4, dtype=torch.float64)}, "is_weights: dtype"),
        ({"is_weights": torch.ones(4, 1)}, "is_weights: shape"),
    ],
)
def test_wrong_arguments_are_named(backend, change, message):
    arguments = {
        "student_logits": torch.zeros(4, 10),
        "teacher_logits": torch.zeros(4, 10),
        "indices": torch.zeros(4, dtype=torch.int64),
        "is_weights": torch.ones(4),
        "sampler": PrioritySampler(200),
    }
    with pytest.raises(ValueError, match=message):
        kd_kl_priority(**{**arguments, **change})


@needs_gpu
@pytest.mark.gpu
def test_cuda_graph(sampler):
    student, teacher = logits((300, 100), seed=1), logits((300, 100), seed=2)
    indices, is_weights = torch.arange(300, device=DEVICE) // 2, torch.ones(300, device=DEVICE)
    check_capturable(lambda: kd_kl_priority(student, teacher, indices, is_weights, sampler, 4.0).detach())
    expected = [tensor.clone() for tensor in sampler.state_dict().values()]
    kd_kl_priority(student, teacher, indices, is_weights, sampler, 4.0)
    assert all(map(torch.equal, expected, sampler.state_dict().values()))
