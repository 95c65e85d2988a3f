"""bn_act_moments and batch_moments against torch's own batch_norm and var in float64, on every backend."""

import pytest
import torch
import torch.nn.functional as F
from bn_layer import EPS, EXACT, Layer, assert_matches, assert_near
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_contract import BACKENDS, DEVICE, running_on

from dfkd_kernels import batch_moments, bn_act_moments
from dfkd_kernels.bn_act_moments.ops import bn_act_folded, bn_act_moments_folded
from dfkd_kernels.bn_act_moments.reference import activation_code

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# every size odd; one sample; more channels than a tile and 1x1 maps; two tiles of rows; other ranks
SHAPES = ((3, 19, 7, 5), (1, 64, 4, 4), (2, 2048, 1, 1), (4, 33, 11, 13), (2, 5, 3), (6, 17), (2, 8, 3, 5, 4))
CHAINS = ((None, False), ("relu", False), ("relu6", False), (None, True), ("relu", True), ("relu6", True))


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "bn_act_moments") as name:
        yield name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("act", "residual"), CHAINS)
def test_every_chain(backend, dtype, nhwc, act, residual):
    assert_matches(Layer(SHAPES[0], dtype, nhwc=nhwc, residual=residual), act)


@pytest.mark.parametrize(("dtype", "nhwc"), [(torch.float32, False), (torch.bfloat16, True)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("act", [act for act in EXACT if act not in (None, "relu", "relu6")])
def test_every_other_activation(backend, act, residual, dtype, nhwc):
    layer = Layer(SHAPES[0], dtype, nhwc=nhwc, residual=residual)
    layer.mean += 2.0  # on both sides of every edge
    assert_matches(layer, act)
    # far out, where the formulas' exponentials leave float32's range
    layer.x.data *= 100
    y, moments = layer.run(act)
    assert_near(y, layer.exact(act)[0], dtype)
    assert all(gradient.isfinite().all() for gradient in layer.gradients(y, moments.sum, moments.sum_sq))
    layer.x.data[0, 0] = torch.nan
    assert layer.run(act)[0][0, 0].isnan().all()


@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda shape: "x".join(map(str, shape)))
def test_every_shape(backend, shape, nhwc):
    assert_matches(Layer(shape, torch.bfloat16, nhwc=nhwc, residual=True), "relu")


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
    nhwc=st.booleans(),
    chain=st.sampled_from(CHAINS),
)
@pytest.mark.parametrize("name", ["triton", "native"])
def test_any_shape(name, shape, nhwc, chain):
    with running_on(name, "bn_act_moments"):
        act, residual = chain
        assert_matches(Layer(shape, nhwc=nhwc, residual=residual), act)


@pytest.mark.parametrize(("act", "residual"), CHAINS)
def test_without_moments_the_same_bits(backend, act, residual):
    layer = Layer(SHAPES[0], torch.bfloat16, nhwc=True, residual=residual)
    inputs = [layer.x] if layer.residual is None else [layer.x, layer.residual]
    scale = torch.rsqrt(layer.var + EPS) * layer.weight
    arguments = (layer.x, layer.mean, scale, layer.bias, layer.residual, activation_code(act))
    expected, _ = bn_act_moments_folded(*arguments)
    found = bn_act_folded(*arguments)
    assert torch.equal(found, expected)
    for pair in zip(*(torch.autograd.grad(y, inputs, layer.dy) for y in (found, expected)), strict=True):
        assert torch.equal(*pair)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
def test_batch_moments(backend, dtype, nhwc):
    layer = Layer(SHAPES[0], dtype, nhwc=nhwc)
    _, exact_sum, exact_sum_sq, _ = layer.exact(None)
    moments = batch_moments(layer.x, layer.mean)
    # the summands of `sum` cancel, so its error counts in ulps of what was added up
    assert_near(moments.sum, exact_sum, torch.float32, ulps=64)
    assert_near(moments.sum_sq, exact_sum_sq, torch.float32, ulps=8)
    (ours,) = layer.gradients(layer.x.detach(), moments.sum, moments.sum_sq)
    (exact,) = layer.gradients(layer.x.detach(), exact_sum, exact_sum_sq)
    assert ours.dtype == dtype
    assert_near(ours, exact.double(), dtype)


@pytest.mark.parametrize("unbiased", [False, True])
def test_mean_and_var(backend, unbiased):
    x = Layer(SHAPES[0]).x
    moments = batch_moments(x)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=int(unbiased))
    assert_near(moments.mean(), mean, torch.float32, ulps=8)
    assert_near(moments.var(unbiased), var, torch.float32, ulps=16)


@pytest.mark.parametrize("shift", ["running mean, off by a sigma", "none"])
def test_mean_of_a_thousand_sigma(backend, shift):
    x = torch.randn((16, 6, 32, 32), generator=torch.Generator().manual_seed(0)) + 1000.0
    centre = None if shift == "none" else torch.full((6,), 1001.0, device=DEVICE)
    var = batch_moments(x.to(DEVICE), centre).var()
    assert_near(var, x.double().var((0, 2, 3), correction=0).to(DEVICE), torch.float32, ulps=64)


@pytest.mark.parametrize("used", ["sum", "sum_sq", "y"])
def test_gradient_of_one_output(backend, used):
    layer = Layer(SHAPES[0], residual=True)
    y, moments = layer.run("relu")
    exact = dict(zip(("y", "sum", "sum_sq"), layer.exact("relu"), strict=False))
    output = {"y": y, "sum": moments.sum, "sum_sq": moments.sum_sq}[used]
    (gradient,) = torch.autograd.grad(output.sum(), layer.x)  # sum() sends back an expanded scalar
    (expected,) = torch.autograd.grad(exact[used].sum(), layer.x)
    assert_near(gradient, expected.double(), torch.float32, ulps=4)


@pytest.mark.parametrize("layout", ["sliced", "transposed", "mixed"])
def test_other_layouts(backend, layout):
    layer = Layer(SHAPES[0], residual=True)
    if layout == "sliced":
        layer.x = torch.cat([layer.x, layer.x], 1).detach()[:, 3:22].requires_grad_()
    elif layout == "transposed":
        layer.x = layer.x.detach().transpose(2, 3).requires_grad_()
        layer.residual = layer.residual.detach().transpose(2, 3).requires_grad_()
        layer.dy = layer.dy.transpose(2, 3)
    else:  # the residual and dy do not have x's layout
        layer.residual = layer.residual.detach().to(memory_format=torch.channels_last).requires_grad_()
        layer.dy = layer.dy.to(memory_format=torch.channels_last)
    y, moments = layer.run("relu")
    exact_y, exact_sum, exact_sum_sq, _ = layer.exact("relu")
    assert_near(y, exact_y, torch.float32)
    ours, exact = (layer.gradients(*out) for out in ((y, *moments[:2]), (exact_y, exact_sum, exact_sum_sq)))
    for gradient, expected in zip(ours, exact, strict=True):
        assert_near(gradient, expected.double(), torch.float32, ulps=4)


def test_without_affine_parameters(backend):
    layer = Layer(SHAPES[0])
    y, _ = bn_act_moments(layer.x, layer.mean, layer.var, None, None, EPS, act=None)
    expected = F.batch_norm(layer.x.double(), layer.mean.double(), layer.var.double(), eps=EPS)
    assert_near(y, expected, torch.float32)
