"""FrozenConv2d and StatBatchNorm2d by themselves, and what freezing refuses."""

import pytest
import torch
from frozen_networks import assert_same, images
from torch import nn

from dfkd_kernels import FrozenConv2d, StatBatchNorm2d, freeze_teacher


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1},
        {"kernel_size": (5, 3), "padding": (0, 2), "dilation": (2, 1), "bias": False},
        {"kernel_size": 1, "padding": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "padding": 1, "groups": 2},
    ],
)
def test_frozen_convolution_keeps_no_activation(geometry, share):
    conv = nn.Conv2d(4, 6, **geometry).requires_grad_(False)
    x = torch.randn(2, 4, 11, 9, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        y = FrozenConv2d(conv, share=share)(x)
    assert [tensor.numel() for tensor in kept] == [conv.weight.numel()]  # as it is, or mirrored
    torch.testing.assert_close(y, conv(x))
    (ours,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(conv(x).square().sum(), x)
    torch.testing.assert_close(ours, expected)


def test_frozen_convolution_under_autocast():
    conv = nn.Conv2d(4, 6, 3, padding=1)
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = FrozenConv2d(conv)(x), conv(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)
    (gradient,) = torch.autograd.grad(y.float().sum(), x)
    assert gradient.dtype == torch.float32


def test_layers_that_have_no_frozen_form_are_reported():
    class OwnNorm(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2.0

    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding="same"),
        OwnNorm(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    ).double()
    teacher = freeze_teacher(network)
    for line in ("0: keeps its input", "padding_mode 'reflect'", "3: keeps its input", "padding 'same'"):
        assert any(line in reported for reported in teacher.report)
    assert "1: no moments, no running statistics" in teacher.report
    assert "4: not fused, OwnNorm may compute something else than BatchNorm2d" in teacher.report
    out = teacher(images())
    assert_same((out.logits,), (network.eval()(images()).detach(),))
    assert len(out.moments) == len(teacher.targets) == 1


def test_wrong_arguments_are_named():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"dtype torch\.int8: choose a floating dtype"):
        freeze_teacher(network, dtype=torch.int8)
    with pytest.raises(ValueError, match="share=True keeps the model's own tensors"):
        freeze_teacher(network, dtype=torch.bfloat16, share=True)
    with pytest.raises(ValueError, match="conv: padding 'same'"):
        FrozenConv2d(nn.Conv2d(3, 4, 3, padding="same"))
    with pytest.raises(ValueError, match="norm: no running statistics"):
        StatBatchNorm2d(nn.BatchNorm2d(4, track_running_stats=False))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 3, 8, 8), r"x: shape \(0, 3, 8, 8\), expected a non-empty \(B, C, H, W\)"),
        (torch.zeros(3, 8, 8), r"x: shape \(3, 8, 8\)"),
        (torch.zeros(2, 4, 8, 8), r"x: shape \(2, 4, 8, 8\), expected \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.float64), "x: dtype torch.float64, expected the network's torch.float32"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "x: dtype torch.uint8"),
        (torch.zeros(2, 3, 8, 8, device="meta"), "x: on meta, but the network is on cpu"),
    ],
)
def test_wrong_images_are_named(x, message):
    teacher = freeze_teacher(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    with pytest.raises(ValueError, match=message):
        teacher(x)
