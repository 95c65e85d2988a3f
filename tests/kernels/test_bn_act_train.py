"""bn_act_train against torch's own batch_norm in float64: values, gradients and running statistics, every backend."""

import pytest
import torch
import torch.nn.functional as F
from bn_layer import assert_near
from operator_contract import BACKENDS, DEVICE, EPSILON, check_compiles, check_repeatable, running_on
from torch._subclasses import FakeTensorMode

from dfkd_kernels import bn_act_train

EPS, SLOPE = 1e-5, 0.2
# every size odd; one sample; other ranks; more channels than a tile and 1x1 maps; two tiles of rows
SHAPES = ((3, 19, 7, 5), (1, 16, 3, 3), (6, 17), (3, 5, 7), (16, 70, 1, 1), (1, 3, 23, 23))
CHAINS = tuple((act, residual) for act in (None, "relu", "leaky_relu") for residual in (False, True))


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "bn_act_train") as name:
        yield name


class Layer:
    """Inputs of one call, around 2 before BatchNorm, and the same call in float64."""

    def __init__(self, shape=SHAPES[0], dtype=torch.float32, *, nhwc=False, residual=False, centre=2.0):
        self.generator = torch.Generator().manual_seed(0)
        self.dtype, self.nhwc = dtype, nhwc
        self.x = self.activation(shape, centre).requires_grad_()
        self.residual = self.activation(shape, 0.0).requires_grad_() if residual else None
        self.dy = self.activation(shape, 0.0)
        self.weight, self.bias = (self.vector(shape[1]).requires_grad_() for _ in range(2))
        self.running = self.vector(shape[1]), self.vector(shape[1]).abs()

    def activation(self, shape, centre):
        values = torch.randn(shape, generator=self.generator) + centre
        if self.nhwc:
            values = values.movedim(1, -1).contiguous().movedim(-1, 1)
        return values.to(DEVICE, self.dtype)

    def vector(self, channels):
        return (torch.randn(channels, generator=self.generator) + 1.0).to(DEVICE)

    @property
    def inputs(self):
        values = (self.x, self.weight, self.bias, self.residual)
        return [value for value in values if value is not None]

    def run(self, act, momentum=0.3):
        affine = self.weight, self.bias
        given = {"residual": self.residual, "act": act, "negative_slope": SLOPE}
        return bn_act_train(self.x, *self.running, *affine, momentum=momentum, eps=EPS, **given)

    def exact(self, act, running, momentum=0.3):
        """y and the activation's input; `running` is moved."""
        before = F.batch_norm(self.x.double(), *running, self.weight.double(), self.bias.double(), True, momentum, EPS)
        before = before if self.residual is None else before + self.residual.double()
        return {None: before, "relu": F.relu(before), "leaky_relu": F.leaky_relu(before, SLOPE)}[act], before


def assert_matches(layer, act, ulps=4.0):
    running = [moment.double() for moment in layer.running]
    expected, before = layer.exact(act, running)
    y = layer.run(act)
    assert y.dtype == layer.dtype
    assert y.stride() == layer.x.stride()
    assert_near(y, expected, layer.dtype)
    for moment, exact in zip(layer.running, running, strict=True):
        assert_near(moment, exact, torch.float32, ulps=8)
    # where rounding may carry a value over the edge of the activation, either derivative is right
    edge = torch.zeros_like(before, dtype=torch.bool) if act is None else before.abs() < 16 * EPSILON[layer.dtype]
    dy = layer.dy.masked_fill(edge, 0.0)
    found = torch.autograd.grad(y, layer.inputs, dy)
    exact = torch.autograd.grad(expected, layer.inputs, dy.double())
    for value, gradient, other in zip(layer.inputs, found, exact, strict=True):
        assert gradient.dtype == value.dtype
        assert_near(gradient, other.double(), value.dtype, ulps=ulps if value.dim() > 1 else 4 * ulps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("act", "residual"), CHAINS)
def test_every_chain(backend, dtype, nhwc, act, residual):
    assert_matches(Layer(dtype=dtype, nhwc=nhwc, residual=residual), act)


@pytest.mark.parametrize("nhwc", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda shape: "x".join(map(str, shape)))
def test_every_shape(backend, shape, nhwc):
    assert_matches(Layer(shape, nhwc=nhwc, residual=True), "relu", ulps=32)


def test_a_mean_of_a_thousand_sigma(backend):
    """Sums of squares about zero would have no digit left."""
    layer = Layer((4, 5, 16, 16), centre=1000.0)
    expected, _ = layer.exact(None, [moment.double() for moment in layer.running])
    assert_near(layer.run(None), expected, torch.float32, ulps=1024)  # x itself has but 14 bits behind the point


@pytest.mark.parametrize("layout", ["sliced", "transposed", "mixed"])
def test_other_layouts(backend, layout):
    layer = Layer(residual=True)
    if layout == "sliced":
        layer.x = torch.cat([layer.x, layer.x], 1).detach()[:, 3:22].requires_grad_()
    elif layout == "transposed":
        layer.x = layer.x.detach().transpose(2, 3).requires_grad_()
        layer.residual, layer.dy = layer.residual.detach().transpose(2, 3).requires_grad_(), layer.dy.transpose(2, 3)
    else:  # the residual and dy do not have x's layout
        layer.residual = layer.residual.detach().to(memory_format=torch.channels_last).requires_grad_()
        layer.dy = layer.dy.to(memory_format=torch.channels_last)
    expected, _ = layer.exact("relu", [moment.double() for moment in layer.running])
    y = layer.run("relu")
    assert_near(y, expected, torch.float32)
    exact = torch.autograd.grad(expected, layer.inputs, layer.dy.double())
    for gradient, other in zip(torch.autograd.grad(y, layer.inputs, layer.dy), exact, strict=True):
        assert_near(gradient, other.double(), torch.float32, ulps=16)


def test_gradients_that_are_asked_for_alone(backend):
    whole, layer = (Layer((2, 3, 3, 3), residual=True) for _ in range(2))
    expected = torch.autograd.grad(whole.run("relu"), whole.inputs, whole.dy)
    for value in layer.inputs:
        value.requires_grad_(False)
    for value, gradient in zip(layer.inputs, expected, strict=True):
        value.requires_grad_()
        (found,) = torch.autograd.grad(layer.run("relu"), value, layer.dy)
        torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-6)
        value.requires_grad_(False)


def test_without_parameters_and_statistics(backend):
    x = Layer().x
    y = bn_act_train(x, None, None, None, None, eps=EPS, act=None)
    assert_near(y, F.batch_norm(x.double(), None, None, training=True, eps=EPS), torch.float32)
    (found,) = torch.autograd.grad(y.pow(3).sum(), x)
    (exact,) = torch.autograd.grad(F.batch_norm(x.double(), None, None, training=True, eps=EPS).pow(3).sum(), x)
    assert_near(found, exact.double(), torch.float32, ulps=16)


@pytest.mark.parametrize(("act", "residual"), CHAINS)
def test_second_derivatives(backend, act, residual):
    """A gradient penalty gets the gradient that torch's own functions give it."""
    layer = Layer(residual=residual)
    results = []
    for y in (layer.run(act), layer.exact(act, [moment.double() for moment in layer.running])[0]):
        gradients = torch.autograd.grad((y * layer.dy).sum(), layer.inputs, create_graph=True)
        penalty = sum(gradient.double().square().sum() for gradient in gradients)
        results.append(torch.autograd.grad(penalty, [layer.x, layer.weight]))
    for found, expected in zip(*results, strict=True):
        assert_near(found, expected.double(), torch.float32, ulps=64)


def test_the_same_bits_and_inputs_untouched(backend):
    layer = Layer(residual=True)

    def call(x, weight, bias, residual):
        y = bn_act_train(x, None, None, weight, bias, residual=residual)
        return y, *torch.autograd.grad(y, [x, weight, bias, residual], layer.dy)

    check_repeatable(call, *layer.inputs)


def test_compiles_whole():
    layer = Layer(residual=True, nhwc=True)
    with running_on("native", "bn_act_train"):
        check_compiles(lambda x, w, b, r: bn_act_train(x, None, None, w, b, residual=r), *layer.inputs)


def test_nan_stays_and_minus_infinity_becomes_zero(backend):
    """As in torch: what is no number is not silently made one."""
    layer = Layer()
    with torch.no_grad():
        layer.x[0, 3, 0, 0] = torch.nan
        layer.bias[5] = -torch.inf
    y = layer.run("relu")
    assert y[:, 3].isnan().all()
    assert layer.running[0][3].isnan()
    assert (y[:, 5] == 0).all()
    assert y[:, 4].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_fake_results_have_the_shapes_of_real_ones(backend):
    layer = Layer(residual=True, nhwc=True)
    with running_on(backend, "bn_act_train"), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(value) for value in layer.inputs]
        y = bn_act_train(fakes[0], None, None, *fakes[1:3], residual=fakes[3])
        gradients = torch.autograd.grad(y.sum(), fakes)
    assert (y.shape, y.stride()) == (layer.x.shape, layer.x.stride())
    assert [gradient.shape for gradient in gradients] == [value.shape for value in layer.inputs]


REFUSED = (
    ("x: dtype", {"x": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}),
    ("weight: shape", {"weight": torch.ones(4)}),
    ("running_var: shape", {"running_var": torch.ones(2)}),
    ("residual: shape", {"residual": torch.zeros(1, 3, 4, 4)}),
    ("residual: dtype", {"residual": torch.zeros(2, 3, 4, 4, dtype=torch.float16)}),
    ("eps: 0", {"eps": 0.0}),
    ("act 'gelu': choose", {"act": "gelu"}),
    ("negative_slope: -1", {"act": "leaky_relu", "negative_slope": -1.0}),
    ("Expected more than 1 value per channel when training, got input size", {"x": torch.zeros(1, 3, 1, 1)}),
)


@pytest.mark.parametrize(("message", "changed"), REFUSED, ids=[message for message, _ in REFUSED])
def test_mistakes_are_named(message, changed):
    given = {"x": torch.zeros(2, 3, 4, 4), "running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    given |= {"weight": torch.ones(3), "bias": None} | changed
    with pytest.raises(ValueError, match=message):
        bn_act_train(**given)
