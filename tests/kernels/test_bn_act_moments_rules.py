"""bn_act_moments as an operator: repeatable, compilable, capturable, its plan, and what it refuses."""

import pytest
import torch
from bn_layer import EPS, Layer
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_contract import BACKENDS, check_capturable, check_compiles, check_repeatable, needs_gpu, running_on

from dfkd_kernels import batch_moments, bn_act_moments, bn_stat_loss
from dfkd_kernels.bn_act_moments import launch, ops, reference

SHAPE = (3, 19, 7, 5)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "bn_act_moments") as name:
        yield name


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
    layer = Layer(SHAPE, nhwc=nhwc, residual=True)
    check_compiles(chain_of_two, layer.x, layer.residual, layer.mean, layer.var, layer.weight, layer.bias)


@needs_gpu
@pytest.mark.gpu
def test_capturable(backend):
    layer = Layer(SHAPE, residual=True)

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
            (ops.forward, (x, *vectors, residual, reference.LEAKY_RELU, 0.1, backend)),
            (ops.plain_forward, (x, *vectors, residual, reference.LEAKY_RELU, 0.1, backend)),
            (ops.backward, (dy, x, *vectors, dy, layer.dsum, None, reference.SILU, 0.0, True, backend)),
            (ops.batch_forward, (x, layer.mean, backend)),
            (ops.batch_backward, (x, layer.mean, None, layer.dsum_sq, backend)),
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


@pytest.mark.parametrize("name", ["triton", "native"])
def test_a_second_derivative_is_refused(name):
    with running_on(name, "bn_act_moments", "bn_stat_loss"):
        layer = Layer(SHAPE)
        y, moments = layer.run()
        bare = batch_moments(layer.x, layer.mean)
        loss = bn_stat_loss([moments], [(layer.mean, layer.var)])
        for result, of in ((y, layer.x), (bare.sum, layer.x), (loss, moments.sum)):
            # a gradient that depends on nothing, and one that does
            for incoming in (result.sum(), result.square().sum()):
                with pytest.raises(RuntimeError, match="no second derivative"):
                    torch.autograd.grad(incoming, of, create_graph=True, retain_graph=True)


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
        (wrong(x=torch.zeros(2, 3, 4, 4, dtype=torch.float8_e5m2)), "x: dtype torch.float8_e5m2"),
        (wrong(x=torch.zeros(3)), r"x: shape \(3,\), expected \(N, C, \*\)"),
        (wrong(running_mean=torch.zeros(4)), r"running_mean: shape \(4,\), expected \(3,\)"),
        (wrong(running_var=torch.zeros(3, device="meta")), "running_var: on meta, but x is on"),
        (wrong(weight=torch.zeros(3, dtype=torch.int64)), "weight: dtype torch.int64"),
        (wrong(bias=torch.zeros(1, 3)), r"bias: shape \(1, 3\)"),
        (wrong(residual=torch.zeros(2, 3, 4, 5)), r"residual: shape \(2, 3, 4, 5\), expected x's"),
        (wrong(residual=torch.zeros(2, 3, 4, 4, dtype=torch.float64)), "residual: dtype torch.float64"),
        (wrong(eps=-1e-5), "eps: -1e-05, expected 0 or more"),
        (wrong(slope=-0.1), "slope: -0.1, expected 0 or more"),
        (wrong(act="mish"), "act 'mish': choose 'relu', 'relu6', 'silu', .* or None"),
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
