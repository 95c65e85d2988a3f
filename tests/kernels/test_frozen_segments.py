"""Frozen layers joined into segments: values and gradients against float64, and what stays outside of them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from frozen_networks import NETWORKS, frozen_step, hooked_step, images, trained_looking
from torch import nn

from dfkd_kernels import freeze_teacher
from dfkd_kernels.freeze.segment import Segment
from dfkd_kernels.freeze.steps import Gate


class Excited(nn.Module):
    """Squeeze-and-excitation by one pooling, activation and gate."""

    def __init__(self, pool: str, act: nn.Module, gate: nn.Module, channels: int = 6) -> None:
        super().__init__()
        self.pool, self.act, self.gate = pool, act, gate
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1, bias=False)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        pooled = y.mean((2, 3), keepdim=True) if self.pool == "mean" else self.avgpool(y)
        gate = self.gate(self.up(self.act(self.down(pooled))))
        return gate * y if self.pool == "mean" else y * gate


class Branches(nn.Module):
    """Parallel branches that meet in a cat, sums in place and not, a broadcast residual, values read twice."""

    def __init__(self, excited: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.SiLU())
        self.excited = excited
        self.right = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        self.early = nn.BatchNorm2d(6)
        self.down = nn.Sequential(nn.Conv2d(12, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8))
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.narrow = nn.Conv2d(8, 8, 4)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        left = self.excited(self.left(x))
        right = self.right(x) + self.early(x)
        right += left
        joined = torch.cat([F.relu(right), F.max_pool2d(left, 3, 1, 1)], 1)
        low = F.hardswish(self.down(joined))
        low = F.relu(self.wide(low) + self.narrow(low[:, :, :4, :4]))
        return self.fc((low + low.flip(3)).mean((2, 3)))


GATES = [
    ("module", nn.ReLU(), nn.Hardsigmoid()),
    ("mean", nn.SiLU(inplace=True), nn.Sigmoid()),
    ("mean", nn.ReLU(inplace=True), nn.Sigmoid()),
    ("module", nn.SiLU(), nn.Hardsigmoid()),
]


def segments_of(teacher: nn.Module, *, moments: bool = True) -> list[Segment]:
    code = teacher._functions[(), moments]
    return [value for value in code.__globals__.values() if isinstance(value, Segment)]


def exact_step(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """logits, loss and gradient in float64, by the network itself under hooks."""
    return hooked_step(copy.deepcopy(network).double(), x.double())


def assert_close_to(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], tolerance: float) -> None:
    for value, exact in zip(found, expected, strict=True):
        assert (value.double() - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize(("pool", "act", "gate"), GATES)
def test_values_and_gradients_of_branches_and_gates(pool: str, act: nn.Module, gate: nn.Module) -> None:
    torch.manual_seed(0)
    network = trained_looking(Branches(Excited(pool, act, gate)))
    x = images(3, torch.float32)[:, :, :8, :8]
    teacher = freeze_teacher(network)
    assert sum(isinstance(each, Gate) for segment in segments_of(teacher) for each in segment.steps) == 1
    assert_close_to(frozen_step(teacher, x), exact_step(network, x), 3e-6)


@pytest.mark.parametrize("name", ["timm:efficientnet_b0", "cifar:wrn16_1"])
def test_networks_are_one_segment_and_exact(name: str) -> None:
    torch.manual_seed(0)
    network = trained_looking(NETWORKS[name]())
    x = images(2, torch.float32)
    teacher = freeze_teacher(network)
    (segment,) = segments_of(teacher)
    assert len(segment.watched) == len(teacher.targets)
    assert_close_to(frozen_step(teacher, x), exact_step(network, x), 1e-4)


def small() -> nn.Module:
    torch.manual_seed(0)
    return trained_looking(Branches(Excited("module", nn.ReLU(), nn.Hardsigmoid())))


def test_what_is_asked_for_is_no_longer_inside() -> None:
    teacher, x = freeze_teacher(small()), images(2, torch.float32)[:, :, :8, :8]
    names = ("stem.0", "left", "excited.down", "right:input")
    maps = teacher(x.requires_grad_(), maps=names).maps
    exact = freeze_teacher(small().double(), fuse=False)(x.double(), maps=names).maps
    for name in names:
        torch.testing.assert_close(maps[name].double(), exact[name], rtol=1e-5, atol=1e-6)
        (dx,) = torch.autograd.grad(maps[name].square().sum(), x, retain_graph=True)
        (dx_exact,) = torch.autograd.grad(exact[name].square().sum(), x, retain_graph=True)
        torch.testing.assert_close(dx, dx_exact, rtol=1e-4, atol=1e-4)


def test_logits_have_gradients_with_respect_to_maps() -> None:
    """As Grad-CAM takes them: a map lies between two segments, not beside one."""
    teacher, x = freeze_teacher(small()), images(2, torch.float32)[:, :, :8, :8]
    for name in ("stem.0", "left", "excited.down"):
        found = teacher(x.requires_grad_(), maps=(name,))
        exact = freeze_teacher(small().double(), fuse=False)(x.double(), maps=(name,))
        (dmap,) = torch.autograd.grad(found.logits.square().sum(), found.maps[name])
        (dmap_exact,) = torch.autograd.grad(exact.logits.square().sum(), exact.maps[name])
        torch.testing.assert_close(dmap.double(), dmap_exact, rtol=1e-4, atol=1e-4)


def test_the_graph_can_be_kept_and_is_let_go_otherwise() -> None:
    teacher, x = freeze_teacher(small()), images(2, torch.float32)[:, :, :8, :8].requires_grad_()
    logits = teacher(x).logits
    (first,) = torch.autograd.grad(logits.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(logits.sum(), x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(logits.sum(), x)


def test_second_derivatives_are_refused() -> None:
    teacher, x = freeze_teacher(small()), images(2, torch.float32)[:, :, :8, :8].requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(teacher(x).logits.square().sum(), x, create_graph=True)


def test_an_input_changed_in_place_is_noticed() -> None:
    network = trained_looking(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.Flatten()))
    teacher, x = freeze_teacher(network), images(2, torch.float32).requires_grad_()
    read = (x * 1.0).contiguous(memory_format=torch.channels_last)
    logits = teacher(read).logits
    with torch.no_grad():
        read.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_a_shared_network_shows_its_new_weights() -> None:
    network = small().eval()
    teacher, x = freeze_teacher(network, share=True), images(2, torch.float32)[:, :, :8, :8]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.9)
    assert_close_to(frozen_step(teacher, x), exact_step(network, x), 3e-6)


def test_autocast_to_the_networks_dtype_and_to_another() -> None:
    x = images(2, torch.float32)[:, :, :8, :8]
    teacher = freeze_teacher(small(), dtype=torch.bfloat16)
    alone = frozen_step(teacher, x)
    with torch.autocast("cpu", torch.bfloat16):
        joined = frozen_step(teacher, x)
        cast = frozen_step(freeze_teacher(small()), x)
    assert torch.equal(alone[0], joined[0])
    assert cast[0].dtype == torch.bfloat16
    assert_close_to(cast[:1], (alone[0].double(),), 0.1)


def test_copies_have_layers_of_their_own() -> None:
    teacher, x = freeze_teacher(small()), images(2, torch.float32)[:, :, :8, :8]
    before = frozen_step(teacher, x)
    twin = copy.deepcopy(teacher)
    with torch.no_grad():
        state = {name: tensor * 0.5 for name, tensor in twin.state_dict().items()}
        twin.load_state_dict(state)
    assert not torch.equal(frozen_step(twin, x)[0], before[0])
    assert all(torch.equal(*pair) for pair in zip(frozen_step(teacher, x), before, strict=True))
