"""bn_stat_loss against the hooks' formula in float64, on every backend."""

import pytest
import torch
from bn_layer import hooks_loss
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
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd_kernels import Moments, batch_moments, bn_stat_loss
from dfkd_kernels.bn_stat_loss import ops, reference

CHANNELS = (3, 64, 1100)  # fewer than a vector, one block, more than one block of the kernel
KINDS = ("l2", "l2_squared")


@pytest.fixture(params=BACKENDS)
def backend(request):
    with running_on(request.param, "bn_stat_loss") as name:
        yield name


def make_layers(*, channels=CHANNELS, dtype=torch.float32, seed=0):
    """Feature maps, targets and running averages of some layers."""
    generator = torch.Generator().manual_seed(seed)

    def vectors(offset):
        return [(torch.rand(count, generator=generator) + offset).to(DEVICE, dtype) for count in channels]

    maps = [torch.randn((4, count, 3, 2), generator=generator).to(DEVICE, dtype).requires_grad_() for count in channels]
    targets = list(zip(vectors(0.0), vectors(0.5), strict=True))
    averages = list(zip(vectors(-0.5), vectors(0.2), strict=True))
    return maps, targets, averages


def loss_of(maps, targets, **options):
    return bn_stat_loss(
        [batch_moments(x, mean) for x, (mean, _) in zip(maps, targets, strict=True)], targets, **options
    )


def assert_like_hooks(maps, targets, **options):
    loss, expected = loss_of(maps, targets, **options), hooks_loss(maps, targets, **options)
    assert loss.shape == ()
    assert loss.dtype == (torch.float64 if maps[0].dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), expected, rtol=16 * EPSILON[loss.dtype], atol=0.0)
    ours, exact = torch.autograd.grad(loss, maps), torch.autograd.grad(expected, maps)
    for gradient, expected_gradient in zip(ours, exact, strict=True):
        bound = 32 * EPSILON[loss.dtype] * expected_gradient.abs().max()
        assert (gradient.double() - expected_gradient.double()).abs().max() <= bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("averaged", [False, True])
def test_every_option(backend, kind, unbiased, weighted, averaged):
    maps, targets, averages = make_layers()
    weights = [10.0, 1.0, 0.5] if weighted else None
    ema = (averages, 0.9) if averaged else None
    assert_like_hooks(maps, targets, kind=kind, weights=weights, ema=ema, unbiased=unbiased)


def test_float64_stays_float64():
    maps, targets, averages = make_layers(dtype=torch.float64)
    assert_like_hooks(maps, targets, ema=(averages, 0.3))


def test_gradcheck_of_the_reference():
    maps, targets, averages = make_layers(channels=(2, 3), dtype=torch.float64)
    options = {"weights": [2.0, 0.5], "ema": (averages, 0.3), "unbiased": True}
    for kind in KINDS:
        assert torch.autograd.gradcheck(lambda *maps, kind=kind: loss_of(maps, targets, kind=kind, **options), maps)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=9), st.sampled_from(KINDS), st.integers(0, 1000))
@pytest.mark.parametrize("name", BACKENDS[1:])
def test_any_layers(name, channels, kind, seed):
    with running_on(name, "bn_stat_loss"):
        maps, targets, averages = make_layers(channels=channels, seed=seed)
        assert_like_hooks(maps, targets, kind=kind, weights=[0.5] * len(channels), ema=(averages, 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_targets_weights_and_averages_are_constants(backend, dtype):
    """Whatever their dtype: the result has the moments', and no gradient reaches them."""
    maps, targets, _ = make_layers(channels=(3, 5))
    constants = [(mean.to(dtype).requires_grad_(), var.to(dtype).requires_grad_()) for mean, var in targets]
    weights = torch.tensor([1.0, 2.0], dtype=dtype, device=DEVICE, requires_grad=True)
    moments = [batch_moments(x) for x in maps]
    loss = bn_stat_loss(moments, constants, weights=weights, ema=(constants, 0.5))
    assert loss.dtype == torch.float32
    loss.backward()
    assert weights.grad is None
    assert all(vector.grad is None for layer in constants for vector in layer)


def test_weights_as_a_tensor(backend):
    maps, targets, _ = make_layers()
    weights = torch.tensor([0.0, 2.0, 3.0], device=DEVICE)
    assert torch.equal(loss_of(maps, targets, weights=weights), loss_of(maps, targets, weights=[0.0, 2.0, 3.0]))


def test_momentum_as_a_tensor_switches_the_average_off(backend):
    maps, targets, averages = make_layers()
    momentum = torch.zeros((), device=DEVICE)
    torch.testing.assert_close(loss_of(maps, targets, ema=(averages, momentum)), loss_of(maps, targets))
    momentum.fill_(0.9)
    assert_like_hooks(maps, targets, ema=(averages, 0.9))
    switched, fixed = loss_of(maps, targets, ema=(averages, momentum)), loss_of(maps, targets, ema=(averages, 0.9))
    assert torch.equal(switched, fixed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_of_zero_passes_no_gradient(backend, kind):
    """sum = 0 and sum_sq = count * var exactly, so both gaps are exactly 0 while the gradient of a norm has 0 / 0."""
    shift, var = torch.zeros(4, device=DEVICE), torch.full((4,), 0.25, device=DEVICE)
    sums = torch.zeros(4, device=DEVICE, requires_grad=True)
    sums_sq = (8 * var).requires_grad_()
    moments = Moments(sums, sums_sq, shift, torch.tensor(8.0, device=DEVICE))
    loss = bn_stat_loss([moments], [(shift, var)], kind=kind)
    gradients = torch.autograd.grad(loss, [sums, sums_sq])
    assert loss.item() == 0.0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_small_gap_beside_a_large_mean(backend):
    """A gap of 1e-3 beside a mean of 1000 survives float32 only if shift and target are subtracted first."""
    mean, var = torch.full((16,), 1000.0, device=DEVICE), torch.ones(16, device=DEVICE)
    gap = torch.full((16,), 1e-3, device=DEVICE)
    moments = Moments(gap * 50, (var + gap**2) * 50, mean, torch.tensor(50.0, device=DEVICE))
    assert bn_stat_loss([moments], [(mean, var)]).item() == pytest.approx(4e-3, rel=1e-3)


def test_repeats_bit_for_bit_and_leaves_inputs(backend):
    maps, targets, averages = make_layers()
    moments = [batch_moments(x, mean) for x, (mean, _) in zip(maps, targets, strict=True)]

    def value_and_gradients(*tensors):
        loss = bn_stat_loss(moments, targets, ema=(averages, 0.9))
        return loss, *torch.autograd.grad(loss, [layer.sum for layer in moments], retain_graph=True)

    check_repeatable(value_and_gradients, *[vector for layer in moments for vector in layer], *averages[0], *targets[0])


def test_compiles_without_a_graph_break(backend):
    maps, targets, averages = make_layers()
    momentum = torch.tensor(0.5, device=DEVICE)

    def losses(*maps):
        return loss_of(maps, targets), loss_of(maps, targets, weights=[1.0, 2.0, 3.0], ema=(averages, momentum))

    check_compiles(losses, *maps)


@needs_gpu
@pytest.mark.gpu
def test_capturable(backend):
    maps, targets, averages = make_layers()
    momentum = torch.tensor(0.9, device=DEVICE)

    def step(*maps):
        loss = loss_of(maps, targets, ema=(averages, momentum)) + loss_of(maps, targets, ema=(averages, 0.5))
        return loss.detach(), *torch.autograd.grad(loss, maps)

    check_capturable(step, *maps)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_operator_keeps_torch_library_rules(backend):
    with running_on(backend, "bn_stat_loss"):
        (targets, averages), counts = make_layers()[1:], [torch.tensor(24.0, device=DEVICE)] * len(CHANNELS)
        means, variances = zip(*targets, strict=True)
        pairs = [list(column) for column in (*zip(*targets, strict=True), *zip(*averages, strict=True))]
        args = (list(means), list(variances), list(means), counts, *pairs, torch.tensor(0.9, device=DEVICE), None)
        torch.library.opcheck(ops.bn_stat_loss_op.overload, (*args, reference.L2, False, backend))


class CountCalls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_launches_do_not_grow_with_the_layers():
    from dfkd_kernels.bn_stat_loss.triton import bn_stat_loss

    def calls(layers):
        vectors = [torch.rand(8, device=DEVICE) for _ in range(layers)]
        counts = [torch.tensor(4.0, device=DEVICE)] * layers
        args = (vectors, vectors, vectors, counts, vectors, vectors, [], [], None, None, reference.L2, False)
        bn_stat_loss(*args)  # the table of offsets is made once per network
        with CountCalls() as counter:
            bn_stat_loss(*args)
        return counter.calls

    with running_on("triton", "bn_stat_loss"):
        assert calls(3) == calls(50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moments": []}, "moments: empty"),
        ({"moments": batch_moments(torch.randn(2, 3, 4, 4))}, "moments: one layer's Moments, expected a list"),
        (
            {"moments": [batch_moments(torch.randn(2, 3)), batch_moments(torch.randn(2, 3).double())]},
            r"moments\[1\]: dty",
        ),
        ({"targets": []}, "targets: 0 entries, but moments has 1"),
        ({"targets": [(torch.zeros(2), torch.zeros(3))]}, r"targets\[0\]: shape \(2,\), but moments\[0\] has \(3,\)"),
        ({"targets": [(torch.zeros(3, device="meta"), torch.zeros(3))]}, r"targets\[0\]: on meta"),
        ({"targets": [(torch.zeros(3), torch.ones(3).int())]}, r"targets\[0\]: dtype torch.int32"),
        ({"targets": [(torch.zeros(3),) * 3]}, r"targets\[0\]: 3 entries, expected \(mean, var\)"),
        ({"kind": "l1"}, "kind 'l1': choose 'l2' or 'l2_squared'"),
        ({"weights": [1.0, 2.0]}, r"weights: shape \(2,\), expected \(1,\)"),
        ({"weights": torch.ones(1, 1)}, r"weights: shape \(1, 1\), expected \(1,\)"),
        ({"ema": ([], 0.9)}, "ema: 0 entries, but moments has 1"),
        ({"ema": ([(torch.zeros(3), torch.zeros(4))], 0.9)}, r"ema\[0\]: shape \(4,\)"),
        ({"ema": ([(torch.zeros(3), torch.zeros(3))], torch.zeros(3))}, r"ema: momentum of shape \(3,\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {
        "moments": [batch_moments(torch.randn(2, 3, 4, 4))],
        "targets": [(torch.zeros(3), torch.zeros(3))],
        **change,
    }
    moments, targets = arguments.pop("moments"), arguments.pop("targets")
    with pytest.raises(ValueError, match=message):
        bn_stat_loss(moments, targets, **arguments)
