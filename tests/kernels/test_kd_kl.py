"""kd_kl against torch's own KL in float64, on every backend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logit_rows import logits, torch_kl
from operator_contract import (
    BACKENDS,
    DEVICE,
    EPSILON,
    check_capturable,
    check_compiles,
    check_repeatable,
    needs_gpu,
    running_on,
)

from dfkd_kernels import kd_kl
from dfkd_kernels.kd_kl import ops, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# one class; CIFAR; odd sizes; one more than a power of two; more classes than one tile holds
SHAPES = ((1, 1), (5, 10), (19, 35), (3, 1025), (2, 5000))


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "kd_kl") as name:
        yield name


def twin(tensor):
    return tensor.detach().double().requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_values_and_gradients(backend, shape, dtype, temperature):
    student, teacher = logits(shape, dtype, seed=1), logits(shape, dtype, seed=2)
    student64, teacher64 = twin(student), twin(teacher)
    weights = torch.rand(shape[0], device=DEVICE)
    kl = kd_kl(student, teacher, temperature)
    expected = torch_kl(student64, teacher64, temperature)
    assert kl.dtype == torch.float32
    assert kl.shape == shape[:1]
    # a row's result is a mean of log-probabilities, each good to a few float32 ulps, times T^2
    tolerance = 8 * EPSILON[torch.float32] * temperature**2 * max(1.0, 10.0 / temperature)
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=tolerance)
    (kl * weights).sum().backward()
    (expected * weights).sum().backward()
    for tensor, oracle in ((student, student64), (teacher, teacher64)):
        assert tensor.grad.dtype == dtype
        atol = 4 * EPSILON[torch.float32] * temperature
        torch.testing.assert_close(tensor.grad.double(), oracle.grad, rtol=EPSILON[dtype] + 2e-4, atol=atol)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_strided_logits(backend, layout):
    dense = {"transposed": (10, 6), "sliced": (6, 25), "expanded": (1, 10)}[layout]
    view = {"transposed": lambda x: x.t(), "sliced": lambda x: x[:, 3:23:2], "expanded": lambda x: x.expand(6, 10)}
    student, teacher = view[layout](logits(dense, seed=3)), view[layout](logits(dense, seed=4))
    assert not student.is_contiguous()
    kl = kd_kl(student, teacher, 4.0)
    torch.testing.assert_close(kl.double(), torch_kl(student, teacher, 4.0), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(kl.sum(), student)
    (expected,) = torch.autograd.grad(torch_kl(student, teacher, 4.0).sum(), student)
    torch.testing.assert_close(gradient, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_reductions(backend, reduction):
    student, teacher = logits((6, 10), seed=1), logits((6, 10), seed=2)
    rows = torch_kl(student, teacher, 2.0)
    expected = {"none": rows, "sum": rows.sum()}.get(reduction, rows.mean())
    actual = kd_kl(student, teacher, 2.0, reduction)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    gradient = torch.autograd.grad(actual.sum(), student)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), student)[0], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_only_the_gradients_that_are_asked_for(backend, who):
    student = logits((4, 10), seed=1, requires_grad=who == "student")
    teacher = logits((4, 10), seed=2, requires_grad=who == "teacher")
    kd_kl(student, teacher, 3.0, "mean").backward()
    wanted, other = (student, teacher) if who == "student" else (teacher, student)
    assert wanted.grad is not None
    assert other.grad is None
    oracle = twin(wanted)
    pair = (oracle, teacher) if who == "student" else (student, oracle)
    torch_kl(*pair, 3.0).mean().backward()
    torch.testing.assert_close(wanted.grad.double(), oracle.grad, rtol=2e-4, atol=1e-6)


def test_mixed_dtypes(backend):
    student, teacher = logits((4, 10), torch.float32, seed=1), logits((4, 10), torch.bfloat16, seed=2)
    kl = kd_kl(student, teacher, 2.0)
    torch.testing.assert_close(kl.double(), torch_kl(student, teacher, 2.0), rtol=1e-5, atol=1e-5)
    kl.sum().backward()
    assert (student.grad.dtype, teacher.grad.dtype) == (torch.float32, torch.bfloat16)


def test_rows_that_are_close_keep_their_digits(backend):
    """Logits around 50 that differ by 0.01: the KL, 5e-5, must not drown in the rounding of the logits' size."""
    student = logits((8, 100), seed=1, spread=1.0, requires_grad=False) + 50
    teacher = student + logits((8, 100), seed=2, spread=0.01, requires_grad=False)
    kl, expected = kd_kl(student, teacher), torch_kl(student, teacher, 1.0)
    torch.testing.assert_close(kl.double(), expected, rtol=2e-2, atol=0)


def test_extreme_logits_stay_finite(backend):
    student = torch.tensor([[1e4, -1e4, 0.0], [1e30, 0.0, -1e30]], device=DEVICE, requires_grad=True)
    teacher = torch.tensor([[1e4, -1e4, 1.0], [1e30, 1.0, -1e30]], device=DEVICE)
    kl = kd_kl(student, teacher)
    assert kl.isfinite().all()
    (gradient,) = torch.autograd.grad(kl.sum(), student)
    assert gradient.isfinite().all()


def test_autocast_changes_nothing(backend):
    student, teacher = logits((4, 10), seed=1), logits((4, 10), seed=2)
    expected = kd_kl(student, teacher, 4.0)
    with torch.autocast(DEVICE, torch.bfloat16):
        actual = kd_kl(student, teacher, 4.0)
    assert torch.equal(actual, expected)


def test_float64_in_float64_out(backend):
    student, teacher = logits((3, 7), torch.float64), logits((3, 7), torch.float64, seed=1)
    kl = kd_kl(student, teacher, 4.0)
    assert kl.dtype == torch.float64
    torch.testing.assert_close(kl, torch_kl(student, teacher, 4.0), rtol=1e-12, atol=1e-13)


def test_gradcheck_of_the_reference():
    student, teacher = logits((3, 5), torch.float64), logits((3, 5), torch.float64, seed=1)
    assert torch.autograd.gradcheck(lambda s, t: reference.kd_kl(s, t, 2.5), (student, teacher))


def test_a_second_derivative_is_refused_not_wrong(backend):
    if backend == "reference":
        pytest.skip("plain torch has second derivatives")
    student = logits((3, 5))
    loss = kd_kl(student, logits((3, 5), seed=1))
    for incoming in (loss, loss**2):  # a gradient that depends on nothing, and one that does
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(incoming.sum(), student, create_graph=True)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 300), st.floats(0.5, 30), st.integers(0, 2**31 - 1))
def test_properties(rows, classes, temperature, seed):
    """A KL is never negative, is zero for equal rows, and its gradients do not see a constant added to a row."""
    for name in BACKENDS[1:]:
        try:
            with running_on(name, "kd_kl"):
                student = logits((rows, classes), seed=seed)
                teacher = logits((rows, classes), seed=seed + 1)
                kl = kd_kl(student, teacher, temperature)
                assert (kl > -1e-5 * temperature**2).all()
                assert kd_kl(student, student, temperature).abs().max() < 1e-6 * temperature**2
                for gradient in torch.autograd.grad(kl.sum(), (student, teacher)):
                    assert gradient.sum(1).abs().max() < 1e-4
        except pytest.skip.Exception:
            continue


def test_repeatable(backend):
    student, teacher = logits((6, 35), seed=1), logits((6, 35), seed=2)

    def run(student, teacher):
        kl = kd_kl(student, teacher, 4.0)
        return kl, *torch.autograd.grad(kl.sum(), (student, teacher))

    check_repeatable(run, student, teacher)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_in_one_graph(backend, compiler):
    def loss(student, teacher):
        return kd_kl(student * 2, teacher, 4.0, "mean")

    check_compiles(loss, logits((4, 10), seed=1), logits((4, 10), seed=2), backend=compiler)


def test_operators_pass_opcheck(backend):
    if backend == "reference":
        pytest.skip("the reference is no operator")
    student, teacher = logits((4, 10), requires_grad=False), logits((4, 10), torch.bfloat16, requires_grad=False)
    torch.library.opcheck(ops._forward.overload, (student, teacher, 4.0, backend))
    kl, lse_student, lse_teacher = ops._forward(student, teacher, 4.0, backend)
    rows = (lse_student, lse_teacher, kl, 4.0)
    for need in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(ops._backward.overload, (torch.ones_like(kl), student, teacher, *rows, *need, backend))


def test_dispatch_modes_see_the_operator(backend):
    if backend == "reference":
        pytest.skip("the reference is no operator")
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        kl = kd_kl(torch.empty(4, 10, device=DEVICE), torch.empty(4, 10, device=DEVICE), 2.0)
    assert kl.shape == (4,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_logits": torch.zeros(0, 10)}, "student_logits: empty batch"),
        ({"student_logits": torch.zeros(4, 10, dtype=torch.int64)}, "student_logits: dtype torch.int64"),
        ({"teacher_logits": torch.zeros(4, 10, dtype=torch.bool)}, "teacher_logits: dtype torch.bool"),
        ({"student_logits": torch.zeros(4, 10, 1)}, "student_logits: shape"),
        ({"teacher_logits": torch.zeros(4, 11)}, "teacher_logits: shape"),
        ({"teacher_logits": torch.zeros(4, 10, device="meta")}, "teacher_logits: on meta"),
        ({"temperature": 0.0}, "temperature: 0.0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"temperature": float("inf")}, "temperature: inf"),
        ({"reduction": "average"}, "reduction 'average'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"student_logits": torch.zeros(4, 10), "teacher_logits": torch.zeros(4, 10), "temperature": 2.0}
    with pytest.raises(ValueError, match=message):
        kd_kl(**{**arguments, **change})


@needs_gpu
@pytest.mark.gpu
def test_cuda_graph(backend):
    student, teacher = logits((64, 100), seed=1), logits((64, 100), seed=2)
    check_capturable(lambda: torch.autograd.grad(kd_kl(student, teacher, 4.0, "mean"), (student, teacher)))
