"""The folded upsampling convolution against upsampling and convolving, and that it may stand in its place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.device.runtime import has_fast_bf16
from dfkd_fast.generators.decoder import make_decoder
from dfkd_fast.generators.layers import UpsampleConv2d


def plain(maps: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(maps, scale_factor=2, mode="nearest"), weight, padding=1)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 4, 1, 1), (3, 1, 2, 1), (2, 8, 4, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_upsampling_then_convolving(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    """Values, and gradients to input and weights, borders included."""
    torch.manual_seed(0)
    maps = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    conv = UpsampleConv2d(shape[1], 5).double()
    conv.weight.data = conv.weight.data.contiguous(memory_format=memory_format)
    expected, found = plain(maps, conv.weight), conv(maps)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (maps, conv.weight), direction)
    gradients = torch.autograd.grad(found, (maps, conv.weight), direction)
    for gradient, reference in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-10)


def test_second_derivatives() -> None:
    conv = UpsampleConv2d(2, 2).double()
    maps = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(conv, (maps,))


def test_in_bfloat16_it_is_as_exact_as_the_plain_form() -> None:
    """The sums of weights are made in float32 and rounded once, so folding costs no accuracy."""
    if not has_fast_bf16(torch.device("cpu")):
        pytest.skip("without bf16 instructions torch rounds between the taps of a transposed convolution")
    torch.manual_seed(0)
    conv, maps = UpsampleConv2d(32, 16), torch.randn(4, 32, 8, 8)
    exact = plain(maps.double(), conv.weight.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = conv(maps), plain(maps, conv.weight)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).square().mean() <= 1.05 * (theirs - exact).square().mean()


@pytest.mark.parametrize("image_size", [32, 112])
def test_decoders_keep_names_shapes_and_initial_weights(image_size: int) -> None:
    """A state of the plain form fits, and the same seed draws the same weights."""
    torch.manual_seed(0)
    state = make_decoder(16, image_size, width=8).state_dict()
    torch.manual_seed(0)
    nn.Linear(16, state["stem.bias"].numel())
    for name in (name for name in state if name.startswith("layers.conv")):
        width, channels = state[name].shape[:2]
        assert torch.equal(state[name], nn.Conv2d(channels, width, 3, padding=1, bias=False).weight), name
