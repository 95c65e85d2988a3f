"""One call of bn_act_moments, and the same by torch's own functions in float64; the statistics loss as hooks get it."""

import torch
import torch.nn.functional as F
from operator_contract import DEVICE, EPSILON

from dfkd_kernels import bn_act_moments

EPS = 1e-5
SLOPE = 0.1
EXACT = {
    None: lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x: F.leaky_relu(x, SLOPE),
}
EDGES = {
    "relu": (0.0,),
    "relu6": (0.0, 6.0),
    "hardswish": (-3.0, 3.0),
    "hardsigmoid": (-3.0, 3.0),
    "leaky_relu": (0.0,),
}
"""where an activation's derivative jumps"""


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
        vectors = (self.mean, self.var, self.weight, self.bias)
        return bn_act_moments(self.x, *vectors, EPS, residual=self.residual, act=act, slope=SLOPE)

    def gradients(self, y, total, total_sq):
        value = (y.double() * self.dy).sum() + (total * self.dsum).sum() + (total_sq * self.dsum_sq).sum()
        return torch.autograd.grad(value, [self.x] if self.residual is None else [self.x, self.residual])

    def exact(self, act):
        """y, sum and sum_sq by torch's own functions in float64, differentiable; and the activation's input."""
        x, mean = self.x.double(), self.mean.double()
        affine = self.weight.double(), self.bias.double()
        before = F.batch_norm(x, mean, self.var.double(), *affine, False, 0.0, EPS)
        before = before if self.residual is None else before + self.residual.double()
        y = EXACT[act](before)
        dims = [dim for dim in range(x.dim()) if dim != 1]
        count = x.numel() / x.shape[1]
        var, batch_mean = torch.var_mean(x, dims, correction=0)
        return y, (batch_mean - mean) * count, (var + (batch_mean - mean) ** 2) * count, before


def assert_near(actual, expected, dtype, ulps=2.0, largest=None):
    """The largest error, in units of the rounding of the largest value, or of `largest`, which it came from."""
    unit = EPSILON[dtype] * (expected if largest is None else largest).abs().max()
    error = (actual.double() - expected).abs().max()
    assert error <= ulps * unit, f"{error / unit:.2f} ulps"


def assert_matches(layer, act):
    y, moments = layer.run(act)
    exact_y, exact_sum, exact_sum_sq, before = layer.exact(act)
    assert y.dtype == layer.dtype
    assert y.stride() == layer.x.stride()
    # relu6 and hardsigmoid cut what is large, but not the rounding of what they are given
    cut = layer.dtype == torch.float32 and act in ("relu6", "hardsigmoid")
    assert_near(y, exact_y, layer.dtype, largest=before if cut else None)
    # the summands of `sum` cancel, so its error counts in ulps of what was added up
    assert_near(moments.sum, exact_sum, torch.float32, ulps=64)
    assert_near(moments.sum_sq, exact_sum_sq, torch.float32, ulps=8)
    assert moments.count.item() == layer.x.numel() // layer.x.shape[1]
    assert torch.equal(moments.shift, layer.mean)
    # where rounding may carry a value over an edge of the activation, either derivative is right
    clear = torch.ones_like(before, dtype=torch.bool)
    for edge in EDGES.get(act, ()):
        clear &= (before - edge).abs() > 8 * EPSILON[layer.dtype]
    ours = layer.gradients(y, moments.sum, moments.sum_sq)
    exact = layer.gradients(exact_y, exact_sum, exact_sum_sq)
    for gradient, exact_gradient in zip(ours, exact, strict=True):
        assert gradient.dtype == layer.dtype
        # torch's own gelu has 5 in float32
        ulps = 8 if layer.dtype == torch.float32 and act in ("silu", "gelu", "gelu_tanh") else 4
        assert_near(gradient * clear, exact_gradient.double() * clear, layer.dtype, ulps=ulps)


def hooks_loss(maps, targets, *, kind="l2", weights=None, ema=None, unbiased=False):
    """What the papers' forward hooks compute; independent of the package, float64."""
    total = 0.0
    for index, (x, (target_mean, target_var)) in enumerate(zip(maps, targets, strict=True)):
        mean = x.double().mean((0, 2, 3))
        var = x.double().permute(1, 0, 2, 3).reshape(x.shape[1], -1).var(1, unbiased=unbiased)
        if ema is not None:
            averages, momentum = ema
            mean = (1 - momentum) * mean + momentum * averages[index][0].double()
            var = (1 - momentum) * var + momentum * averages[index][1].double()
        gaps = torch.norm(target_mean.double() - mean), torch.norm(target_var.double() - var)
        term = sum(gap**2 if kind == "l2_squared" else gap for gap in gaps)
        total = total + (1.0 if weights is None else weights[index]) * term
    return total
