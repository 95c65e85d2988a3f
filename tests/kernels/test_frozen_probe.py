"""freeze_teacher holds what it makes against the original: networks that a rewrite would change, and other answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from frozen_networks import assert_same, frozen_step, hooked_step, images, trained_looking
from torch import Tensor, nn

from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_kernels import FrozenConv2d, StatBatchNorm2d, freeze_teacher
from dfkd_kernels.freeze.norms import WatchedBatchNorm

ensure_importable()
import timm  # noqa: E402 (imports torchvision)
from torchvision.ops import FrozenBatchNorm2d  # noqa: E402


class Small(nn.Module):
    """Two convolutions with BatchNorm, put together by `body`; then pooling and a Linear."""

    def __init__(self, body: Callable[[Small, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.pool(self.body(self, x)).flatten(1))


def read_again(net: Small, x: Tensor) -> Tensor:
    h = F.relu(net.norm1(net.conv1(x)))
    keep = h
    h += net.norm2(net.conv2(h))
    return F.relu(h) + keep  # keep is the sum, too


def seen_through_a_view(net: Small, x: Tensor) -> Tensor:
    h = F.relu(net.norm1(net.conv1(x)))
    keep = h[:, :4]
    h.add_(net.norm2(net.conv2(h)))
    return F.relu(h) + torch.cat([keep, keep], 1)


def plain(net: Small, x: Tensor) -> Tensor:
    h = F.relu(net.norm1(net.conv1(x)))
    return F.relu(h + net.norm2(net.conv2(h)))


def branching(net: Small, x: Tensor) -> Tensor:
    return plain(net, x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("body", [read_again, seen_through_a_view])
def test_a_sum_in_place_that_is_read_by_another_name(
    body: Callable[[Small, Tensor], Tensor], dtype: torch.dtype | None
) -> None:
    network = trained_looking(Small(body).double())
    teacher = freeze_teacher(network, dtype=dtype)
    assert any(line.startswith("network: not fused, its logits would differ") for line in teacher.report)
    if dtype is None:
        assert_same((teacher(images()).logits,), (network(images()).detach(),))
    else:
        found, expected = teacher(images()).logits.double(), network(images())
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_network_that_is_fused_says_nothing_of_it() -> None:
    network = trained_looking(Small(plain).double())
    teacher = freeze_teacher(network)
    assert teacher.report == []
    assert_same(frozen_step(teacher, images()), hooked_step(network, images()))


def test_no_form_that_answers_otherwise_is_handed_out() -> None:
    """The attribute is read from the layer's class: no frozen form has it, so that the answers differ everywhere."""

    def body(net: Small, x: Tensor) -> Tensor:
        return plain(net, x) * (1.0 if type(net.norm1) is nn.BatchNorm2d else 3.0)

    with pytest.raises(ValueError, match=r"^model: no frozen Small answers as the original \(.*not swapped"):
        freeze_teacher(trained_looking(Small(body)))


class Named(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclass
class ModelOutput:
    loss: Tensor | None
    logits: Tensor


class Answering(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Any], body: Callable[[Small, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.answer = Small(body), answer

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        return self.answer(self.net(pixel_values))


ANSWERS = {
    "dict": lambda y: {"loss": y.sum(), "logits": y},
    "only entry": lambda y: {"out": y},
    "named tuple": lambda y: Named(y, y * 2),
    "dataclass": lambda y: ModelOutput(None, y),
    "tuple": lambda y: (y, y * 2),
    "list of one": lambda y: [y],
}


@pytest.mark.parametrize("body", [plain, branching])
@pytest.mark.parametrize("kind", ANSWERS)
def test_logits_are_taken_from_what_a_network_answers(kind: str, body: Callable[[Small, Tensor], Tensor]) -> None:
    network = trained_looking(Answering(ANSWERS[kind], body).double())
    teacher = freeze_teacher(network)
    assert_same((teacher(images()).logits,), (network.net(images()).detach(),))
    chosen = [line for line in teacher.report if "the first tensor is taken as the logits" in line]
    assert len(chosen) == (kind == "tuple")


@pytest.mark.parametrize(
    ("answer", "held"),
    [(lambda y: {"a": y, "b": y}, "a dict, holds a, b"), (lambda y: "text", "a str, holds no tensor")],
)
def test_an_answer_without_logits_is_refused(answer: Callable[[Tensor], Any], held: str) -> None:
    with pytest.raises(ValueError, match=rf"^model: its answer, {held}; expected logits \(B, K\)$"):
        freeze_teacher(Answering(answer, plain))


def test_frozen_batchnorms_hand_out_their_statistics() -> None:
    network = Small(plain)
    network.norm1 = FrozenBatchNorm2d(8)
    network.norm1.running_mean.uniform_(-1, 1)
    network.norm1.running_var.uniform_(0.5, 2)
    teacher = freeze_teacher(network.eval())
    assert len(teacher.targets) == 2
    assert torch.equal(teacher.targets[0][0], network.norm1.running_mean)
    assert isinstance(teacher.body.get_submodule("norm1"), WatchedBatchNorm)
    assert any(line.startswith("norm1: not fused, FrozenBatchNorm2d") for line in teacher.report)
    out = teacher(images(dtype=torch.float32))
    torch.testing.assert_close(out.moments[0].mean(), network.conv1(images(dtype=torch.float32)).mean((0, 2, 3)))


def test_batchnorms_over_tokens_are_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), nn.BatchNorm1d(8), nn.Flatten(), nn.Linear(128, 5))
    teacher = freeze_teacher(network)
    assert "2: no moments, BatchNorm1d does not read (B, C, H, W)" in teacher.report
    assert teacher.targets == []


def test_timms_batchnorm_with_activation_is_fused() -> None:
    """densenet121: 121 such layers with a ReLU, each one operator; the values are the original's."""
    network = trained_looking(timm.create_model("densenet121", num_classes=5).double())
    assert type(network.features.norm0).__name__ == "BatchNormAct2d"
    teacher = freeze_teacher(network)
    assert [line for line in teacher.report if "not fused" in line] == []
    assert len(teacher.targets) == 121
    assert sum(isinstance(module, StatBatchNorm2d) for module in teacher.modules()) == 121
    assert_same(frozen_step(teacher, images()), hooked_step(network, images()))


@pytest.mark.parametrize("spec", [{"stride": 2, "padding": (1, 0)}, {"groups": 4, "dilation": 2, "bias": False}])
def test_frozen_convolutions_describe_themselves_as_before(spec: dict[str, Any]) -> None:
    conv = nn.Conv2d(4, 8, 3, **spec)
    frozen = FrozenConv2d(conv)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(frozen, name) == getattr(conv, name)
    assert (frozen.padding_mode, frozen.transposed) == ("zeros", False)


def test_the_comparison_leaves_no_trace() -> None:
    """Neither in the stream of random numbers, which an eval-mode network may draw from, nor in the network."""
    network = trained_looking(Small(lambda net, x: plain(net, x) + 0 * torch.rand(8, 1, 1)))
    before, mode = copy.deepcopy(network.state_dict()), network.train().training
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    freeze_teacher(network)
    assert torch.equal(torch.rand(3), expected)
    assert network.training == mode
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_cannot_be_compared_is_reported() -> None:
    network = Small(plain)
    network.fc.weight.data[0, 0] = torch.nan
    assert any("whose logits are not finite" in line for line in freeze_teacher(network).report)
    picky = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 20, 5))
    assert any("takes no image tried" in line for line in freeze_teacher(picky).report)
    assert not any("takes no image" in line for line in freeze_teacher(picky, image_shape=(3, 20, 20)).report)
    assert any("hold no values" in line for line in freeze_teacher(Small(plain).to("meta")).report)
