"""Activations behind a BatchNorm become one operator with it, as modules and as functions, and nothing changes."""

import pytest
import torch
import torch.nn.functional as F
from frozen_networks import assert_same, frozen_step, hooked_step, images, trained_looking
from torch import nn

from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_kernels import freeze_teacher

ensure_importable()
from timm.layers import BatchNormAct2d, create_act_layer  # noqa: E402 (imports torchvision)
from torchvision.ops import StochasticDepth  # noqa: E402


class Block(nn.Module):
    """conv -> bn -> act, and conv -> bn -> something that passes on -> add -> act."""

    def __init__(self, act, passing=None):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.act, self.passing = act, passing or nn.Identity()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x):
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.passing(self.norm2(self.conv2(x))) + x)
        return self.fc(self.pool(x).flatten(1))


FUSED = {
    "SiLU": nn.SiLU(),
    "Hardswish": nn.Hardswish(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "GELU": nn.GELU(),
    "GELU tanh": nn.GELU(approximate="tanh"),
    "LeakyReLU": nn.LeakyReLU(0.2),
    "ReLU6": nn.ReLU6(),
    "silu": F.silu,
    "hardswish": lambda x: F.hardswish(x, inplace=True),
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
    "leaky_relu 0.2": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu 0.3": lambda x: F.leaky_relu(x, negative_slope=0.3),
    "timm gelu_tanh": create_act_layer("gelu_tanh"),
    "timm hard_swish": create_act_layer("hard_swish"),
}
OTHERS = {"ELU": nn.ELU(), "rising": nn.LeakyReLU(-0.1), "tanh": torch.tanh}


@pytest.mark.parametrize("name", FUSED)
def test_it_is_fused_and_the_step_is_the_same(name):
    network = trained_looking(Block(FUSED[name]).double())
    teacher = freeze_teacher(network)
    assert teacher.report == []
    assert not any(node.op == "call_module" and str(node.target) == "act" for node in teacher.body.graph.nodes)
    assert_same(frozen_step(teacher, images()), hooked_step(network, images()))


@pytest.mark.parametrize("name", OTHERS)
def test_others_stay_behind_it(name):
    network = trained_looking(Block(OTHERS[name]).double())
    teacher = freeze_teacher(network)
    assert [line.partition(":")[0] for line in teacher.report if "not fused" in line] == ["norm1"]
    assert_same(frozen_step(teacher, images()), hooked_step(network, images()))


def test_stochastic_depth_is_taken_out():
    network = trained_looking(Block(nn.SiLU(), StochasticDepth(0.5, "row")).double())
    teacher = freeze_teacher(network)
    assert teacher.report == []
    assert_same(frozen_step(teacher, images()), hooked_step(network, images()))


def test_timms_batchnorm_with_any_activation():
    norm = BatchNormAct2d(6, act_layer=nn.Hardswish)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).double()
    trained_looking(network)
    teacher = freeze_teacher(network)
    assert teacher.report == []
    assert_same(frozen_step(teacher, images()), hooked_step(network, images()))


def test_a_network_without_batchnorm_keeps_its_layers():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    teacher = freeze_teacher(network)
    assert type(teacher.body.get_submodule("0")) is nn.Conv2d
    x = images(dtype=torch.float32).requires_grad_()
    expected = torch.autograd.grad(network(x).square().sum(), x)
    assert_same(torch.autograd.grad(teacher(x).logits.square().sum(), x), expected, tolerance=1e-6)
    assert all(parameter.grad is None for parameter in network.parameters())
