"""Weights in oneDNN's own layout give the same bits as torch's convolutions, and are used where they pay alone."""

import copy
import pickle

import pytest
import torch
from operator_contract import needs_cpu
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dfkd_kernels import FrozenConv2d
from dfkd_kernels.freeze import packed

pytestmark = needs_cpu

GEOMETRIES = (
    {"in_channels": 256, "out_channels": 256, "kernel_size": 1},
    {"in_channels": 96, "out_channels": 96, "kernel_size": 3, "padding": 1},
    {"in_channels": 96, "out_channels": 128, "kernel_size": 3, "padding": 1, "stride": 2},
    {"in_channels": 256, "out_channels": 256, "kernel_size": 3, "groups": 8, "dilation": 2, "padding": 2},
)


def step(layer, x):
    """y and dx"""
    x = x.detach().requires_grad_()
    y = layer(x)
    return y.detach(), torch.autograd.grad(y.float().square().sum(), x)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["1x1", "3x3", "stride", "groups"])
def test_the_same_bits(geometry, dtype, monkeypatch):
    conv = nn.Conv2d(**geometry).to(dtype, memory_format=torch.channels_last)
    layer, twin = FrozenConv2d(conv), FrozenConv2d(conv)
    for batch in (17, 5):  # packed for the one, used for the other; fewer than 16 images may go another way
        x = torch.randn(batch, conv.in_channels, 7, 5).to(dtype, memory_format=torch.channels_last)
        ours = step(layer, x)
        ways = {"forward"} if layer.mirrored is None else {"forward", "backward"}
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # a processor without AVX512
            ways = set()
        assert layer._packed._by_way.keys() == ways
        with monkeypatch.context() as patch:
            patch.setattr(packed, "LEAST", 10**9)
            expected = step(twin, x)
        assert not twin._packed._by_way
        for mine, theirs in zip(ours, expected, strict=True):
            assert torch.equal(mine, theirs)
            assert mine.stride() == theirs.stride()


def test_what_is_packed_follows_the_weight():
    layer = FrozenConv2d(nn.Conv2d(256, 256, 1))
    x = torch.randn(16, 256, 3, 3).to(memory_format=torch.channels_last)
    y, _ = step(layer, x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(step(other, x)[0], y)
    layer.load_state_dict({"weight": 2 * layer.weight, "bias": 2 * layer.bias})
    assert torch.equal(step(layer, x)[0], 2 * y)
    assert step(layer.to(torch.bfloat16), x.to(torch.bfloat16))[0].dtype == torch.bfloat16


def test_it_is_for_constant_large_weights_alone():
    x = torch.randn(16, 256, 3, 3).to(memory_format=torch.channels_last)
    small, shared = FrozenConv2d(nn.Conv2d(256, 8, 1)), FrozenConv2d(nn.Conv2d(256, 256, 1), share=True)
    for layer in (small, shared):
        step(layer, x)
    assert not small._packed._by_way
    assert shared._packed is None
    layer = FrozenConv2d(nn.Conv2d(256, 256, 1))
    with torch.autocast("cpu", torch.bfloat16):
        step(layer, x)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    assert counter.get_total_flops() == 2 * 256 * 256 * 9 * 16
    step(layer, x.contiguous())
    assert not layer._packed._by_way
