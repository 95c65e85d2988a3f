"""The networks have the published shapes: parameters, multiply-adds, BN layers, and WRN's unusual shortcut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dfkd_fast.models import cifar, cifar_resnet, small

BUILDERS = {
    name: getattr(module, name)
    for module, names in (
        (cifar, ("resnet18", "resnet34", "wrn16_1", "wrn16_2", "wrn40_1", "wrn40_2", "vgg11")),
        (cifar_resnet, ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")),
        (small, ("cnn", "cnn_s", "resnet8")),
    )
    for name in names
}

PARAMETERS = {  # name: (10 classes, 100 classes)
    "resnet18": (11_173_962, 11_220_132),
    "resnet34": (21_282_122, 21_328_292),
    "wrn16_1": (175_066, 180_916),
    "wrn16_2": (691_674, 703_284),
    "wrn40_1": (563_930, 569_780),
    "wrn40_2": (2_243_546, 2_255_156),
    "vgg11": (9_231_114, 9_277_284),
    "resnet20": (269_722, 275_572),
    "resnet32": (464_154, 470_004),
    "resnet44": (658_586, 664_436),
    "resnet56": (853_018, 858_868),
    "resnet110": (1_727_962, 1_733_812),
    "cnn": (24_346, 30_196),
    "cnn_s": (6_418, 9_388),
    "resnet8": (78_042, 83_892),
}

BATCHNORMS = {  # name: (layers, channels); two for each block, one for each projection, and the stem's or the last one
    "resnet18": (20, 4800),
    "resnet34": (36, 8512),
    "wrn16_1": (13, 464),
    "wrn16_2": (13, 912),
    "wrn40_1": (37, 1360),
    "wrn40_2": (37, 2704),
    "vgg11": (8, 2752),
    "resnet20": (19, 688),
    "resnet56": (55, 2032),
}

MEGA_MACS = {  # (name, image size): millions of multiply-adds of one image, as the literature counts them
    ("resnet18", 32): 555,
    ("resnet34", 32): 1159,
    ("resnet18", 64): 2222,
    ("resnet34", 64): 4638,
    ("wrn16_1", 32): 26.7,
    ("wrn16_2", 32): 101,
    ("wrn40_1", 32): 83,
    ("wrn40_2", 32): 328,
    ("vgg11", 32): 209,
    ("resnet20", 32): 40.8,
    ("resnet56", 32): 125.5,
    ("resnet110", 32): 252.9,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        counts = tuple(sum(p.numel() for p in BUILDERS[name](k).parameters()) for k in (10, 100))
    assert counts == PARAMETERS[name]


@pytest.mark.parametrize("name", BATCHNORMS)
def test_batchnorm_layers(name: str) -> None:
    with torch.device("meta"):
        channels = [m.num_features for m in BUILDERS[name](10).modules() if isinstance(m, nn.BatchNorm2d)]
    assert (len(channels), sum(channels)) == BATCHNORMS[name]


@pytest.mark.parametrize(("name", "image_size"), MEGA_MACS)
def test_multiply_adds(name: str, image_size: int) -> None:
    with torch.device("meta"):
        model = BUILDERS[name](10, image_size=image_size).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, image_size, image_size))
    mega_macs = counter.get_total_flops() / 2e6
    assert mega_macs == pytest.approx(MEGA_MACS[name, image_size], rel=0.01)


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("name", BUILDERS)
def test_traced_graph_equals_module(name: str, in_chans: int) -> None:
    torch.manual_seed(0)
    model = BUILDERS[name](7, in_chans=in_chans).eval()
    images = torch.randn(2, in_chans, 32, 32)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, 7)
        assert torch.equal(traced(images), logits)


@pytest.mark.parametrize("name", BUILDERS)
def test_first_loss_is_near_chance(name: str) -> None:
    """A sane initialisation starts in the neighbourhood of log K, whatever the depth."""
    torch.manual_seed(0)
    model = BUILDERS[name](10).train()
    loss = F.cross_entropy(model(torch.randn(32, 3, 32, 32)), torch.arange(32) % 10)
    assert 1.5 < loss.item() < 4.5


def wide_resnet_by_formula(x: Tensor, state: dict[str, Tensor], blocks: int) -> Tensor:
    """WRN in evaluation mode, on a state dict, from the paper's formula x + conv(relu(bn(conv(relu(bn(x))))))."""

    def activate(x: Tensor, bn: str) -> Tensor:
        mean, var, gamma, beta = (state[f"{bn}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        view = (1, -1, 1, 1)
        return ((x - mean.view(view)) / (var.view(view) + 1e-5).sqrt() * gamma.view(view) + beta.view(view)).clamp_min(
            0
        )

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage, stride in (("block1", 1), ("block2", 2), ("block3", 2)):
        for index in range(blocks):
            name = f"{stage}.layer.{index}"
            step = stride if index == 0 else 1
            active = activate(x, f"{name}.bn1")
            hidden = F.conv2d(active, state[f"{name}.conv1.weight"], padding=1, stride=step)
            hidden = F.conv2d(activate(hidden, f"{name}.bn2"), state[f"{name}.conv2.weight"], padding=1)
            shortcut = state.get(f"{name}.convShortcut.weight")
            x = hidden + (x if shortcut is None else F.conv2d(active, shortcut, stride=step))
    return activate(x, "bn1").mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("name", ["wrn16_1", "wrn16_2"])
def test_wide_resnet_equals_its_formula(name: str) -> None:
    torch.manual_seed(0)
    model = BUILDERS[name](5).double()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if "bn" in key and value.is_floating_point():
                value.uniform_(0.5, 1.5)  # statistics and affine terms other than the initial 0 and 1
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        expected = wide_resnet_by_formula(images, model.state_dict(), blocks=2)
        torch.testing.assert_close(model.eval()(images), expected, rtol=1e-10, atol=1e-10)


def test_vgg_halves_large_images_once_more() -> None:
    torch.manual_seed(0)
    small_form, large_form = cifar.vgg11(10, image_size=32), cifar.vgg11(10, image_size=64)
    assert small_form.state_dict().keys() == large_form.state_dict().keys()
    assert isinstance(small_form.pool3, nn.Identity)
    assert isinstance(large_form.pool3, nn.MaxPool2d)


def test_shortcut_keeps_every_second_pixel_among_zeros() -> None:
    block = cifar_resnet.Block(2, 4).eval()
    block.bn2.weight.data.zero_()  # what is left is relu(shortcut)
    images = torch.rand(1, 2, 5, 5)
    kept = images[:, :, ::2, ::2]
    expected = torch.cat([torch.zeros(1, 1, 3, 3), kept, torch.zeros(1, 1, 3, 3)], dim=1)
    torch.testing.assert_close(block(images), expected)


DEEP = ("resnet34", "wrn40_1", "wrn40_2", "resnet44", "resnet56", "resnet110")
"""whose blocks others have, too: their many copies take long to script"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly if name in DEEP else ()) for name in BUILDERS]
)
def test_every_network_can_be_scripted(name: str) -> None:
    """In both modes, and for another number of images than it was made with: nothing in it is Python's alone."""
    torch.manual_seed(0)
    model = BUILDERS[name](5, in_chans=1, image_size=16)
    images = torch.rand(3, 1, 16, 16)
    for training in (True, False):
        scripted = torch.jit.script(model.train(training))
        before = {key: value.clone() for key, value in model.state_dict().items()}
        expected = model(images)
        model.load_state_dict(before)  # what a training step has done to the BN statistics that both share
        assert torch.equal(scripted(images), expected)
