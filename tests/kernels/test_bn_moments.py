"""bn_act_moments and batch_moments against torch's own batch_norm and var in float64, on every backend."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
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

from dfkd_kernels import batch_moments, bn_act_moments
from dfkd_kernels.bn_moments import launch, operators, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = 1e-5
# every size odd; one sample; more channels than a tile and 1x1 maps; two tiles of rows; other ranks
SHAPES = ((3, 19, 7, 5), (1, 64, 4, 4), (2, 2048, 1, 1), (4, 33, 11, 13), (2, 5, 3), (6, 17), (2, 8, 3, 5, 4))
CHAINS = ((None, False), ("relu", False), ("relu6", False), (None, True), ("relu", True), ("relu6", True))


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "bn_act_moments") as name:
        yield name


class Layer:
    """Inputs of one call: values around 2, so that every activation cuts some of them off."""

    def __init__(self, shape, dtype=torch.float32, *, nhwc=False, residual=False, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        channels = shape[1]
        self.nhwc, self.dtype = nhwc, dtype
        self.x = self.activation(shape, 1.5, 2.0).requires_grad_()
        self.residual = self.activation(shape, 1.0, 0.0).requires_grad_() if residual else None
        self.mean, self.var = self.vector(channels) + 2.0, self.vector(channels).abs() + 0.5
        self.weight, self.bias = self.vector(channels) + 1.0, self.vector(channels) + 1.0
        self.dy = self.activation(shape, 1.0, 0.0)
        self.dsum, self.dsum_sq = self.vector(channels) * 0.1, self.vector(channels) * 0.1

    def activation(self, shape, spread, centre):
        values = torch.randn(shape, generator=self.generator) * spread + centre
        if self.nhwc:
            values = values.movedim(1, -1).contiguous().movedim(-1, 1)
        return values.to(DEVICE, self.dtype)

    def vector(self, channels):
        return torch.randn(channels, generator=self.generator).to(DEVICE)

    def run(self, act="relu"):
        return bn_act_moments(self.x, self.mean, self.var, self.weight, self.bias, EPS, residual=self.residual, act=act)

    def gradients(self, y, total, total_sq):
        value = (y.double() * self.dy).sum() + (total * self.dsum).sum() + (total_sq * self.dsum_sq).sum()
        return torch.autograd.grad(value, [self.x] if self.residual is None else [self.x, self.residual])

    def exact(self, act):
        """y, sum and sum_sq by torch's own functions in float64, differentiable; and the activation's input."""
        x, mean = self.x.double(), self.mean.double()
        affine = self.weight.double(), self.bias.double()
        before = F.batch_norm(x, mean, self.var.double(), *affine, False, 0.0, EPS)
        before = before if self.residual is None else before + self.residual.double()
        y = {None: before, "relu": F.relu(before), "relu6": F.relu6(before)}[act]
        dims = [dim for dim in range(x.dim()) if dim != 1]
        count = x.numel() / x.shape[1]
        var, batch_mean = torch.var_mean(x, dims, correction=0)
        return y, (batch_mean - mean) * count, (var + (batch_mean - mean) ** 2) * count, before


def assert_near(actual, expected, dtype, ulps=2.0):
    """The largest error, in units of the largest value's rounding."""
    unit = EPSILON[dtype] * expected.abs().max()
    error = (actual.double() - expected).abs().max()
    assert error <= ulps * unit, f"{error / unit:.2f} ulps"


def assert_matches(layer, act):
    y, moments = layer.run(act)
    exact_y, exact_sum, exact_sum_sq, before = layer.exact(act)
    assert y.dtype == layer.dtype
    assert y.stride() == layer.x.stride()
    assert_near(y, exact_y, layer.dtype)
    # the summands of `sum` cancel, so its error counts in ulps of what was added up
    assert_near(moments.sum, exact_sum, torch.float32, ulps=64)
    assert_near(moments.sum_sq, exact_sum_sq, torch.float32, ulps=8)
    assert moments.count.item() == layer.x.numel() // layer.x.shape[1]
    assert torch.equal(moments.shift, layer.mean)
    # where rounding may carry a value over an edge of the activation, either derivative is right
    edges = {None: (), "relu": (0.0,), "relu6": (0.0, 6.0)}[act]
    clear = torch.ones_like(before, dtype=torch.bool)
    for edge in edges:
        clear &= (before - edge).abs() > 8 * EPSILON[layer.dtype]
    ours = layer.gradients(y, moments.sum, moments.sum_sq)
    exact = layer.gradients(exact_y, exact_sum, exact_sum_sq)
    for gradient, exact_gradient in zip(ours, exact, strict=True):
        assert gradient.dtype == layer.dtype
        assert_near(gradient * clear, exact_gradient.double() * clear, layer.dtype, ulps=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("act", "residual"), CHAINS)
def test_every_chain(backend, dtype, nhwc, act, residual):
    assert_matches(Layer(SHAPES[0], dtype, nhwc=nhwc, residual=residual), act)


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


def test_batch_moments(backend):
    layer = Layer(SHAPES[0], torch.bfloat16)
    _, exact_sum, exact_sum_sq, _ = layer.exact(None)
    moments = batch_moments(layer.x, layer.mean)
    # the summands of `sum` cancel, so its error counts in ulps of what was added up
    assert_near(moments.sum, exact_sum, torch.float32, ulps=64)
    assert_near(moments.sum_sq, exact_sum_sq, torch.float32, ulps=8)
    (ours,) = layer.gradients(layer.x.detach(), moments.sum, moments.sum_sq)
    (exact,) = layer.gradients(layer.x.detach(), exact_sum, exact_sum_sq)
    assert_near(ours, exact.double(), torch.bfloat16)


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


@pytest.mark.parametrize("name", ["triton", "native"])
def test_a_second_derivative_is_refused(name):
    with running_on(name, "bn_act_moments"):
        layer = Layer(SHAPES[0])
        (gradient,) = torch.autograd.grad(layer.run()[0].square().sum(), layer.x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


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


def test_repeats_bit_for_bit_and_leaves_inputs(backend):
    layer = Layer((4, 33, 11, 13), residual=True)

    def everything(x, residual, mean, var, weight, bias):
        y, moments = bn_act_moments(x, mean, var, weight, bias, EPS, residual=residual)
        return y, *moments, *layer.gradients(y, moments.sum, moments.sum_sq)

    check_repeatable(everything, layer.x, layer.residual, layer.mean, layer.var, layer.weight, layer.bias)


def chain_of_two(x, residual, mean, var, weight, bias):
    y, first = bn_act_moments(x, mean, var, weight, bias, EPS, residual=residual)
    y, second = bn_act_moments(y, mean, var, weight, bias, EPS, act="relu6")
    last = batch_moments(y)
    return y, first.sum, first.var(), second.sum_sq, last.mean()


@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
def test_compiles_without_a_graph_break(backend, nhwc):
    layer = Layer(SHAPES[0], nhwc=nhwc, residual=True)
    check_compiles(chain_of_two, layer.x, layer.residual, layer.mean, layer.var, layer.weight, layer.bias)


@needs_gpu
@pytest.mark.gpu
def test_capturable(backend):
    layer = Layer(SHAPES[0], residual=True)

    def step(x, residual):
        y, moments = bn_act_moments(x, layer.mean, layer.var, layer.weight, layer.bias, EPS, residual=residual)
        return y.detach(), *layer.gradients(y, moments.sum, moments.sum_sq)

    check_capturable(step, layer.x, layer.residual)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
def test_operators_keep_torch_library_rules(backend, nhwc):
    layer = Layer((2, 5, 3, 2), nhwc=nhwc, residual=True)
    x, residual, dy = layer.x.detach(), layer.residual.detach(), layer.dy
    vectors = (layer.mean, layer.var, layer.bias)
    with running_on(backend, "bn_act_moments"):
        calls = (
            (operators.forward, (x, *vectors, residual, reference.RELU, backend)),
            (operators.backward, (dy, x, *vectors, dy, layer.dsum, None, reference.RELU, True, backend)),
            (operators.batch_forward, (x, layer.mean, backend)),
            (operators.batch_backward, (x, layer.mean, None, layer.dsum_sq, backend)),
        )
        for operator, args in calls:
            torch.library.opcheck(operator.overload, args)


def test_gradcheck_of_the_reference():
    layer = Layer((2, 3, 2, 2), torch.float64, residual=True)

    def outputs(x, residual, act):
        y, moments = bn_act_moments(x, layer.mean, layer.var, layer.weight, layer.bias, EPS, residual=residual, act=act)
        return y, moments.sum, moments.var()

    for act in reference.ACTIVATIONS:
        assert torch.autograd.gradcheck(outputs, (layer.x, layer.residual, act))
    assert torch.autograd.gradcheck(lambda x: batch_moments(x, layer.mean)[:2], layer.x)
    # without a shift the sums depend on the sample that was taken, mean and variance do not
    assert torch.autograd.gradcheck(lambda x: (batch_moments(x).mean(), batch_moments(x).var()), layer.x)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(1, 300), min_size=2, max_size=4),
    nhwc=st.booleans(),
    direction=st.sampled_from(("forward", "backward")),
)
def test_plan_covers_every_tile_once(shape, nhwc, direction):
    cut = launch.plan(torch.Size(shape), nhwc, direction)
    num_rows, num_channels, num_positions, num_tiles, per_program = cut.sizes
    rows, channels = cut.options["ROWS"], cut.options["CHANNELS"]
    tiles = -(-num_rows // rows) if nhwc else shape[0] * -(-num_positions // rows)
    assert num_tiles == tiles
    assert (cut.grid[0] - 1) * per_program < num_tiles <= cut.grid[0] * per_program
    assert (cut.grid[1] - 1) * channels < num_channels <= cut.grid[1] * channels


def wrong(**changes):
    layer = Layer((2, 3, 4, 4))
    arguments = {
        "x": layer.x,
        "running_mean": layer.mean,
        "running_var": layer.var,
        "weight": layer.weight,
        "bias": layer.bias,
        "eps": EPS,
    }
    return {**arguments, **changes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (wrong(x=torch.zeros(0, 3, 4, 4)), "x: empty batch"),
        (wrong(x=torch.zeros(2, 3, 4, 4, dtype=torch.int32)), "x: dtype torch.int32"),
        (wrong(x=torch.zeros(3)), r"x: shape \(3,\), expected \(N, C, \*\)"),
        (wrong(running_mean=torch.zeros(4)), r"running_mean: shape \(4,\), expected \(3,\)"),
        (wrong(running_var=torch.zeros(3, device="meta")), "running_var: on meta, but x is on"),
        (wrong(weight=torch.zeros(3, dtype=torch.int64)), "weight: dtype torch.int64"),
        (wrong(bias=torch.zeros(1, 3)), r"bias: shape \(1, 3\)"),
        (wrong(residual=torch.zeros(2, 3, 4, 5)), r"residual: shape \(2, 3, 4, 5\), expected x's"),
        (wrong(residual=torch.zeros(2, 3, 4, 4, dtype=torch.float64)), "residual: dtype torch.float64"),
        (wrong(act="gelu"), "act 'gelu': choose 'relu', 'relu6' or None"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        bn_act_moments(**arguments)


def test_batch_moments_names_wrong_arguments():
    with pytest.raises(ValueError, match="x: empty batch"):
        batch_moments(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"shift: shape \(2,\)"):
        batch_moments(torch.zeros(1, 3), torch.zeros(2))
