"""Preprocessing belongs to the network: flags, its file, its library or its data set state it, never the images that it
is evaluated on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dfkd_fast.cli.main import main
from dfkd_fast.config.data_sets import DATA_SETS, data_set_of
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.data.class_order import natural, number_hint
from dfkd_fast.data.splits import load_split
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.training.checkpoints.checkpoint import load_network, save_network
from dfkd_fast.training.evaluate import Expected
from dfkd_fast.training.judge import accuracy_lines, suspicions

SHAPE = {"num_classes": 12, "image_size": 8}


def shades(root: Path, names: list[str]) -> Path:
    """A test split of one grey shade for each class, in the order of `names`."""
    for index, name in enumerate(names):
        folder = root / "test" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 20 * index, np.uint8)).save(folder / "0.png")
    return root


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A checkpoint that says nothing of itself."""
    torch.manual_seed(0)
    model, _ = load_model("cnn", mean=(0.5,) * 3, std=(0.5,) * 3, **SHAPE)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "foreign.pth")
    return tmp_path / "foreign.pth"


def test_flags_come_before_the_file_and_the_file_before_the_library(tmp_path: Path) -> None:
    model, info = load_model("tv:resnet18", num_classes=3, image_size=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (info.mean, info.sources["mean"], info.interpolation) == ((0.1, 0.2, 0.3), "--mean", "bilinear")
    save_network(tmp_path / "t.safetensors", model, info, top1=0.75)
    again = load_network(tmp_path / "t.safetensors")[1]
    assert again == info
    assert (again.sources["mean"], again.claimed_top1) == ("its file", 0.75)
    other = load_model("tv:resnet18", weights=tmp_path / "t.safetensors", std=(0.7, 0.8, 0.9))[1]
    assert (other.mean, other.std, other.sources["std"]) == (info.mean, (0.7, 0.8, 0.9), "--std")
    bare = load_model("tv:resnet18", num_classes=3, image_size=32, data_set="cifar10")[1]
    assert (bare.mean, bare.sources["mean"]) == ((0.485, 0.456, 0.406), "torchvision's configuration")


BRIGHT = """
import torch
from torch import nn

class Bright(nn.Module):
    '''Tells pictures above a grey of 0.3 from those below, if they were shifted by 0.5 and divided by 0.5.'''
    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor((0.3 - 0.5) / 0.5))

    def forward(self, x):
        level = x.mean((1, 2, 3)) - self.level
        return torch.stack([-level, level], 1)
"""


@pytest.mark.parametrize(("mean", "top1"), [("0.5", "1.0000"), ("0.2", "0.5000")])
def test_eval_prepares_images_as_is_stated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mean: str, top1: str
) -> None:
    """A network that was trained elsewhere has its own accuracy with its own values, and not with others."""
    (tmp_path / "bright.py").write_text(BRIGHT)
    torch.save({"state_dict": {"level": torch.tensor(-0.4)}}, tmp_path / "bright.pth")
    for name, shade in (("dark", 60), ("light", 130)):
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / "data" / "test" / name / "0.png")
    network = ("--student", f"{tmp_path}/bright.py:Bright", "--data", str(tmp_path / "data"))
    stated = ("--mean", mean, "--std", "0.5", "--image-size", "8", "--device", "cpu")
    assert main(["eval", str(tmp_path / "bright.pth"), *network, *stated]) == 0
    assert f"top-1 {top1}" in capsys.readouterr().out


def test_a_data_set_stands_in_last_and_is_named(foreign: Path) -> None:
    info = load_model("cnn", data_set="cifar10")[1]
    assert (info.num_classes, info.image_size, info.std) == (10, (32, 32), (0.2023, 0.1994, 0.2010))
    assert info.class_names == DATA_SETS["cifar10"].class_names
    assert set(info.sources.values()) == {"as for cifar10"}
    assert "as for cifar10" in info.described()
    for method, preset in (("nayer", "cifar10"), ("fast", "cifar100-fast5"), ("muse", "imagenette")):
        assert load_config(default_config(method), preset=preset).teacher_data == data_set_of(preset)
    assert len(DATA_SETS["cifar100"].class_names) == 100
    with pytest.raises(UserError, match=r"^--teacher cnn: mean, std not known: .*; state them, as --mean 0.4914"):
        load_model("cnn", weights=foreign, **SHAPE)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mean 123.7 116.3 103.5", "--mean 123.7 116.3 103.5: choose numbers from 0 to 1, for pixels in [0, 1]"),
        ("--std 0 1 1", "--std 0.0 1.0 1.0: choose numbers from above 0 to 1"),
        ("--mean 0.5 0.5 0.5 --std 0.5", "--std: 1 values, but --mean has 3; give one each channel"),
        ("--in-chans 1 --mean 0.5 0.5 0.5", "--mean 0.5 0.5 0.5: 3 values for --in-chans 1; give one each"),
        ("--interpolation cubic", "--interpolation cubic: did you mean bicubic?"),
        ("--teacher-data cifar", "--teacher-data cifar: "),
        ("--class-order nowhere", "--class-order nowhere: no such file or directory; choose natural or a file"),
    ],
)
def test_mistakes(foreign: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    """In one line, whichever command is given the flag."""
    commands: list[list[str]] = [
        ["eval", str(foreign), "--student", "cnn", "--data", "digits"],
        ["teacher", "info", str(foreign)],
        ["train", "dafl", "--teacher", "cnn", "--teacher-weights", str(foreign), "--student", "cnn_s"],
    ]
    for command in commands:
        assert main([*command, *flags.split()]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"dfkd-fast: {message}"), error
        assert error.count("\n") == 1


def test_classes_in_the_order_that_is_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network that counts its classes is right on numbered folders once that is said, by a word, a file or its own;
    unsaid there is a hint, and a warning where it guesses.
    """
    names = [str(index) for index in range(12)]
    data, order = shades(tmp_path / "data", names), tmp_path / "order.txt"
    order.write_text("\n".join(names))
    model, info = load_model("cnn", mean=(0.0,) * 3, std=(1.0,) * 3, **SHAPE)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
    with torch.no_grad():  # logit k of shade s: 2 k s - k^2, largest where k is s
        steps = torch.arange(12.0) * 20 / 255
        model.eval()
        seen = model.fc.weight.new_zeros(12, 3, 8, 8) + steps[:, None, None, None]
        bent: list[torch.Tensor] = []
        handle = model.fc.register_forward_pre_hook(lambda _, inputs: bent.append(inputs[0]))
        model(seen)
        handle.remove()
        level = bent[0][:, 0]
        model.fc.weight.zero_()
        model.fc.weight[:, 0] = 2 * level
        model.fc.bias.copy_(-(level**2))
    file, named = tmp_path / "t.safetensors", tmp_path / "named.safetensors"
    save_network(file, model, info, top1=1.0)
    save_network(named, model, replace(info, class_names=tuple(names)))
    found = {}
    for case, arguments in {
        "unsaid": [str(file)],
        "natural": [str(file), "--class-order", "natural"],
        "file": [str(file), "--class-order", str(order)],
        "its own": [str(named)],
    }.items():
        assert main(["eval", *arguments, "--data", str(data), "--device", "cpu", "--threads", "1"]) == 0
        found[case] = capsys.readouterr().out
    assert all("top-1 1.0000" in found[case] for case in ("natural", "file", "its own"))
    assert "top-1 0.1667" in found["unsaid"]
    assert "a network that counts them needs --class-order natural" in found["unsaid"]
    assert "warning: that is near chance, 0.0833 for 12 classes" in found["unsaid"]
    assert "warning" not in found["natural"] + found["file"] + found["its own"]
    assert main(["eval", str(file), "--data", "digits", "--class-order", str(order), "--device", "cpu"]) == 2
    assert "other classes than those of --data digits; not in both: 10, 11" in capsys.readouterr().err


def test_natural_order() -> None:
    assert natural(["10", "2", "1", "c10", "c9"]) == ("1", "2", "10", "c9", "c10")
    assert number_hint(["0", "1", "10", "2"], "x") is not None
    assert number_hint(["0", "1", "2"], "x") is None
    assert number_hint(["a1", "a10", "a2"], "x") is None


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "1 of 32 numbers"), (-1.0, "a negative variance")])
def test_statistics_that_are_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, what: str
) -> None:
    """By the tensor's name, in every command that reads a network, before anything is written."""
    model, info = load_model("cnn", mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=10, image_size=32)
    model.bn2.running_var[3] = value
    file = tmp_path / "t.safetensors"
    save_network(file, model, info)
    run = ["--teacher", "cnn", "--teacher-weights", str(file), "--student", "cnn_s", "--run-dir", str(tmp_path / "run")]
    for command in (
        ["eval", str(file), "--data", "digits"],
        ["teacher", "info", str(file)],
        ["train", "dafl", *run, "--device", "cpu"],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{file}: bn2.running_var holds {what}" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_claim_that_is_not_kept_is_warned_of() -> None:
    """And only that: chance has a warning of its own, and a few points may be another image library's."""
    test = Expected(load_split("digits", "test"), [])
    info = load_model("cnn", num_classes=10, image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)[1]
    for top1, claimed, by, words in (
        (0.8, 0.9, "best_acc1", "warning: that is far below the 0.9000 that its file says (best_acc1); check"),
        (0.8, 0.9, "", "warning: that is far below the 0.9000 that its file says; check"),
        (0.86, 0.9, "best_acc1", ""),
        (0.1, 0.9, "best_acc1", "warning: that is near chance, 0.1000 for 10 classes; check"),
        (0.8, None, "", ""),
    ):
        lines = accuracy_lines(top1, replace(info, claimed_top1=claimed, claimed_by=by), test)
        assert "".join(lines).startswith(words)
        assert len(lines) == bool(words)
        assert all("0.9000" in line for line in lines), "what its file says is named"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda model: None, "seen no image"),
        (lambda model: settle(model, 1.0), "learned nothing"),
        (lambda model: model.fc.weight.data.mul_(settle(model, 1.0)), None),
        (lambda model: model.fc.weight.data.mul_(settle(model, 255.0)), "255 times as strong"),
        (lambda model: model.fc.weight.data.mul_(settle(model, 1 / 255)), "1/255 as strong"),
    ],
)
def test_noise_shows_what_is_untrained_or_wrongly_scaled(
    change: Callable[[nn.Module], object], expected: str | None
) -> None:
    torch.manual_seed(0)
    model, info = load_model("cnn", mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=10, image_size=32)
    change(model)
    runtime = make_runtime(device="cpu", precision="fp32")
    before = torch.get_rng_state()
    lines = suspicions(FrozenNet(model.eval(), info, runtime), runtime)
    assert torch.equal(torch.get_rng_state(), before)
    if expected is None:
        assert lines == []
    else:
        assert any(expected in line and line.startswith("warning: ") for line in lines), lines


def settle(model: nn.Module, scale: float) -> float:
    """Give BatchNorm the statistics of what it is probed with, then let its input be `scale` times as strong; returns
    what spreads the logits as a trained network's are.
    """
    from dfkd_fast.training.judge import natural_noise

    info = ModelInfo(name="cnn", num_classes=10, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(natural_noise(info, 32))
        first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
        first.weight.mul_(scale)
    return 50.0
