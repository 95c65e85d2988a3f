"""cam_margin_loss against an einsum in float64, on every backend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_contract import (
    BACKENDS,
    DEVICE,
    EPSILON,
    check_capturable,
    check_compiles,
    check_repeatable,
    needs_cpu,
    needs_gpu,
    running_on,
)

from dfkd_kernels import cam_margin_loss
from dfkd_kernels.cam_margin import ops, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)
# one value; an odd map; a 112 px ImageNet network; a map of more pixels than one tile
SHAPES = ((1, 1, 1, 1), (3, 19, 5, 7), (2, 2048, 4, 4), (2, 7, 9, 11))
CLASSES = 6


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "cam_margin_loss") as name:
        yield name


def problem(shape, dtype=torch.float32, memory_format=torch.contiguous_format, seed=0):
    """Features, class weights and labels; the maps' values scatter around the default target, 1."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(shape, generator=generator)
    weights = (torch.randn((CLASSES, shape[1]), generator=generator) + 0.2) / shape[1] ** 0.5 * 3
    labels = torch.randint(0, CLASSES, shape[:1], generator=generator)
    features = features.to(DEVICE, dtype).contiguous(memory_format=memory_format).requires_grad_()
    return features, weights.to(DEVICE, dtype), labels.to(DEVICE)


def oracle_margins(features, class_weights, labels, target):
    maps = torch.einsum("bk,bkhw->bhw", class_weights.double()[labels], features.double())
    return torch.relu(target - maps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["number", "map"])
def test_values_and_gradients(backend, shape, memory_format, dtype, kind):
    features, class_weights, labels = problem(shape, dtype, memory_format)
    target = 1.0 if kind == "number" else torch.rand(shape[2:], device=DEVICE) * 2
    expected = oracle_margins(features, class_weights, labels, target)
    actual = cam_margin_loss(features, class_weights, labels, target, "none")
    assert actual.dtype == torch.float32
    atol = EPSILON[torch.float32] * 3 * shape[1]
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=atol)
    weights = torch.rand(expected.shape, device=DEVICE)
    (gradient,) = torch.autograd.grad((actual * weights).sum(), features)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), features)
    assert gradient.dtype == dtype
    if backend != "reference":
        assert gradient.is_contiguous(memory_format=memory_format)
    # a pixel whose margin is rounding noise may fall on either side of the target
    clear = (expected > atol) | (expected == 0)
    clear = clear[:, None].expand(shape)
    torch.testing.assert_close(gradient[clear].double(), wanted[clear].double(), rtol=EPSILON[dtype], atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(backend, reduction):
    features, class_weights, labels = problem((4, 19, 3, 3))
    margins = oracle_margins(features, class_weights, labels, 1.0)
    expected = {"mean": margins.mean(), "sum": margins.sum(), "none": margins}[reduction]
    actual = cam_margin_loss(features, class_weights, labels, reduction=reduction)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(actual.sum(), features)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), features)[0], rtol=1e-5, atol=1e-7)


def test_strided_features(backend):
    features, class_weights, labels = problem((3, 19, 8, 10))
    view = features[:, :, 1:6, ::2]
    actual = cam_margin_loss(view, class_weights, labels)
    expected = oracle_margins(view, class_weights, labels, 1.0).mean()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(actual, features)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, features)[0], rtol=1e-5, atol=1e-8)


def test_no_gradient_at_or_above_the_target(backend):
    features = torch.tensor([0.5, 1.0, 2.0], device=DEVICE).view(1, 1, 1, 3).requires_grad_()
    class_weights, labels = torch.ones(1, 1, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    cam_margin_loss(features, class_weights, labels, 1.0, "sum").backward()
    assert features.grad.flatten().tolist() == [-1.0, 0.0, 0.0]


def test_class_weights_are_constants(backend):
    features, class_weights, labels = problem((2, 19, 3, 3))
    class_weights.requires_grad_()
    cam_margin_loss(features, class_weights, labels).backward()
    assert features.grad is not None
    assert class_weights.grad is None


def test_keeps_no_features_for_backward(backend):
    if backend == "reference":
        pytest.skip("plain torch keeps what it likes")
    features, class_weights, labels = problem((4, 64, 4, 4))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        cam_margin_loss(features, class_weights, labels, reduction="none")
    assert sum(tensor.nbytes for tensor in saved) == 4 * 16 + class_weights.nbytes + labels.nbytes


def test_autocast_changes_nothing(backend):
    features, class_weights, labels = problem((2, 64, 3, 5))
    expected = cam_margin_loss(features, class_weights, labels)
    with torch.autocast(DEVICE, torch.bfloat16):
        actual = cam_margin_loss(features, class_weights, labels)
    assert torch.equal(actual, expected)


def test_float64_in_float64_out(backend):
    features, class_weights, labels = problem((2, 19, 3, 5), torch.float64)
    actual = cam_margin_loss(features, class_weights, labels)
    assert actual.dtype == torch.float64
    expected = oracle_margins(features, class_weights, labels, 1.0).mean()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


def test_gradcheck_of_the_reference():
    features, class_weights, labels = problem((2, 5, 2, 3), torch.float64)
    assert torch.autograd.gradcheck(lambda x: reference.cam_margins(x, class_weights, labels, 0.9), (features,))


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(FORMATS),
    st.integers(0, 1000),
)
def test_every_shape(shape, memory_format, seed):
    features, class_weights, labels = problem(shape, memory_format=memory_format, seed=seed)
    expected = oracle_margins(features, class_weights, labels, 1.0)
    for name in BACKENDS:
        try:
            with running_on(name, "cam_margin_loss"):
                actual = cam_margin_loss(features, class_weights, labels, reduction="none")
                torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
        except pytest.skip.Exception:
            continue


def test_repeatable(backend):
    def run(features, class_weights, labels):
        loss = cam_margin_loss(features, class_weights, labels)
        return loss, *torch.autograd.grad(loss, features)

    check_repeatable(run, *problem((3, 19, 5, 7)))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", ["number", "map"])
def test_compiles_in_one_graph(backend, memory_format, kind):
    features, class_weights, labels = problem((3, 19, 5, 7), memory_format=memory_format)
    target = 1.0 if kind == "number" else torch.rand(5, 7, device=DEVICE)

    def loss(features):
        return cam_margin_loss(features * 1.5, class_weights, labels, target)

    check_compiles(loss, features)


def test_operators_pass_opcheck(backend):
    if backend == "reference":
        pytest.skip("the reference is no operator")
    for memory_format in FORMATS:
        features, class_weights, labels = problem((3, 19, 5, 7), memory_format=memory_format)
        features = features.detach()
        for target_map in (None, torch.rand(5, 7, device=DEVICE)):
            arguments = (features, class_weights, labels, target_map, 1.0, backend)
            torch.library.opcheck(ops._forward.overload, arguments)
        margins, mask = ops._forward(*arguments)
        channels_last = memory_format == torch.channels_last
        arguments = (margins, mask, class_weights, labels, torch.bfloat16, channels_last, backend)
        torch.library.opcheck(ops._backward.overload, arguments)


FEATURES, WEIGHTS, LABELS = torch.zeros(2, 5, 3, 4), torch.zeros(CLASSES, 5), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(0, 5, 3, 4)}, "features: empty batch"),
        ({"features": torch.zeros(2, 5, 12)}, "features: shape"),
        ({"features": torch.zeros(2, 5, 3, 4, dtype=torch.int32)}, "features: dtype"),
        ({"class_weights": torch.zeros(CLASSES, 4)}, "class_weights: shape"),
        ({"class_weights": torch.zeros(CLASSES, 5, dtype=torch.int8)}, "class_weights: dtype"),
        ({"class_weights": torch.zeros(CLASSES, 5, device="meta")}, "class_weights: on meta"),
        ({"labels": torch.zeros(2, dtype=torch.int32)}, "labels: dtype"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels: shape"),
        pytest.param(
            {"labels": torch.tensor([0, CLASSES])}, rf"labels: {CLASSES} is outside \[0, 6\)", marks=needs_cpu
        ),
        pytest.param({"labels": torch.tensor([-1, 0])}, "labels: -1 is outside", marks=needs_cpu),
        ({"target": torch.zeros(4, 3)}, "target: shape"),
        ({"target": torch.zeros(3, 4, device="meta")}, "target: on meta"),
        ({"reduction": "max"}, "reduction 'max'"),
    ],
)
def test_wrong_arguments_are_named(backend, change, message):
    arguments = {"features": FEATURES, "class_weights": WEIGHTS, "labels": LABELS}
    with pytest.raises(ValueError, match=message):
        cam_margin_loss(**{**arguments, **change})


@needs_gpu
@pytest.mark.gpu
def test_cuda_graph(backend):
    features, class_weights, labels = problem((64, 512, 4, 4), torch.bfloat16, torch.channels_last)
    check_capturable(lambda: torch.autograd.grad(cam_margin_loss(features, class_weights, labels), features))
