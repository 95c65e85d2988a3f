"""Every spec builds a network that answers as its ModelInfo says; what cannot be built is explained in one line."""

from __future__ import annotations

import json
import urllib.error
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfkd_fast.catalog import MADE_FOR, MODELS
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.sources import default_config
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_fast.models.weights.header import HEADER
from dfkd_fast.training.assemble import load_teacher

DIGITS: dict[str, Any] = {"num_classes": 10, "image_size": 32, "mean": (0.3, 0.3, 0.3), "std": (0.4, 0.4, 0.4)}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def message_of(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_model(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("spec", MODELS)
def test_own_networks(spec: str) -> None:
    model, info = load_model(spec, **DIGITS)
    assert info == ModelInfo(name=spec, in_chans=3, **DIGITS)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_channels_follow_the_mean() -> None:
    model, info = load_model("cnn", num_classes=4, image_size=28, mean=(0.5,), std=(0.5,))
    assert info.in_chans == 1
    assert model.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 4)


@pytest.mark.parametrize(
    ("spec", "interpolation"),
    [("tv:resnet18", "bilinear"), ("timm:resnet18.a1_in1k", "bicubic"), ("timm:resnet18", "bicubic")],
)
def test_libraries_bring_their_own_configuration(spec: str, interpolation: str) -> None:
    normalised = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": interpolation}
    model, info = load_model(spec, num_classes=7, image_size=64)
    assert info == ModelInfo(name=spec, num_classes=7, image_size=64, **normalised)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    _, bare = load_model(spec)
    assert replace(bare, class_names=()) == ModelInfo(name=spec, num_classes=1000, image_size=224, **normalised)
    assert bare.class_names[:2] == ("tench", "goldfish")


def test_saved_weights_say_what_they_are(tmp_path: Path) -> None:
    model, info = load_model("cnn_s", **DIGITS)
    path = tmp_path / "student.safetensors"
    save_file(model.state_dict(), path, metadata={HEADER: json.dumps(info.header())})
    again, found = load_model("cnn_s", weights=path)
    assert found == info
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert load_model("cnn_s", weights=path, image_size=64)[1].image_size == (64, 64)


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    torch.save({"state_dict": load_model("resnet8", **DIGITS)[0].state_dict()}, path)
    message = message_of("cnn", **DIGITS, weights=path, flag="--teacher")
    assert message.startswith(f"--teacher-weights {path}: does not fit cnn (")
    assert "unexpected: layer1.0" in message


@pytest.mark.parametrize(
    ("spec", "start", "hint"),
    [
        ("wrn16", "--student wrn16: did you mean wrn16_", "tv:NAME, timm:NAME"),
        ("hub:resnet50", "--student hub:resnet50: ", "wrn40_2"),
        ("tv:resnet3", "--student tv:resnet3: torchvision has no", "tv:resnet34"),
        ("tv:fcn_resnet50", "--student tv:fcn_resnet50: torchvision has no classification", "tv:resnet50"),
        ("timm:resnot18", "--student timm:resnot18: timm has no", "timm:resnet18"),
        ("timm:resnet18.nobody", "--student timm:resnet18.nobody: timm has no", "timm:resnet18"),
        ("tv:", "--student tv:: torchvision has no", "see its documentation"),
    ],
)
def test_unknown_names(spec: str, start: str, hint: str) -> None:
    message = message_of(spec, **DIGITS, flag="--student")
    assert message.startswith(start)
    assert hint in message


def test_values_that_nobody_knows() -> None:
    assert message_of("wrn40_2", num_classes=10) == (
        "--teacher wrn40_2: image_size, mean, std not known: neither flags nor its file nor its library say; "
        "state them, as --image-size 32 --mean 0.4914 0.4822 0.4465 --std 0.2023 0.1994 0.2010"
    )


def test_a_network_for_cifar_knows_its_size(tmp_path: Path) -> None:
    """Flags and a data set come before it, and what it took is said; its classes are its file's."""
    even = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    torch.save({"state_dict": load_model("resnet20", num_classes=7, **even)[0].state_dict()}, tmp_path / "t.th")
    info = load_model("resnet20", weights=tmp_path / "t.th", **even)[1]
    assert (info.image_size, info.num_classes) == (ImageSize.of(32), 7)
    assert "32 px (what resnet20 is made for)" in info.described()
    assert load_model("resnet20", num_classes=7, image_size=64, **even)[1].image_size == ImageSize.of(64)
    assert load_model("resnet20", data_set="tiny-imagenet")[1].image_size == ImageSize.of(64)
    assert MADE_FOR.keys() < MODELS.keys()


def test_torchvision_networks_are_for_colour_images() -> None:
    assert "3 channels, not 1" in message_of("tv:resnet18", num_classes=10, mean=(0.5,), std=(0.5,))


def test_sizes_that_timms_networks_cannot_have() -> None:
    shape = DIGITS | {"image_size": 20}
    assert message_of("timm:deit_tiny_patch16_224", **shape) == (
        "--teacher timm:deit_tiny_patch16_224: sees images of a multiple of 16 pixels, not of 20"
    )
    message = message_of("timm:xcit_nano_12_p16_224", **shape)
    assert message.startswith("--teacher timm:xcit_nano_12_p16_224: cannot be built for images of 20 pixels (")
    assert message.endswith("; choose --image-size 224, or another network")


def test_published_weights_know_other_classes() -> None:
    for spec in ("tv:resnet34", "timm:resnet18"):
        assert message_of(spec, num_classes=10, pretrained=True) == (
            f"--teacher {spec}: its published weights know 1000 classes, not 10; give --teacher-weights"
        )


def test_networks_without_published_weights() -> None:
    for spec in ("cnn", "timm:botnet50ts_256"):
        message = message_of(spec, **DIGITS, pretrained=True)
        assert message == f"--teacher {spec}: has no published weights; give --teacher-weights"


def fetched_state() -> dict[str, Any]:
    ensure_importable()
    from torchvision import models

    torch.manual_seed(3)
    state: dict[str, Any] = models.resnet18().state_dict()
    return state


def test_published_weights_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own download is the only step replaced."""
    published = fetched_state()
    asked: list[str] = []

    def download(url: str, **_: Any) -> dict[str, Any]:
        asked.append(url)
        return published

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    model, info = load_model("tv:resnet18", pretrained=True)
    assert asked == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]
    assert info.num_classes == 1000
    assert torch.equal(model.state_dict()["fc.weight"], published["fc.weight"])


@pytest.mark.parametrize(
    ("name", "value", "what"), [("fc.weight", float("nan"), "1 of 512000"), ("bn1.running_var", -1.0, "a negative")]
)
def test_published_weights_that_are_no_numbers(
    monkeypatch: pytest.MonkeyPatch, name: str, value: float, what: str
) -> None:
    """By the tensor's name, as in files."""
    published = fetched_state()
    published[name].view(-1)[0] = value
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published)
    message = message_of("tv:resnet18", pretrained=True)
    assert message.startswith(f"--teacher tv:resnet18: {name} holds {what}")
    assert message.endswith("; its published weights are of no use: give --teacher-weights")


def test_code_that_returns_what_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of a hub, say, that somebody's own code fetches."""
    monkeypatch.chdir(tmp_path)
    lines = (
        "from torch import nn",
        "def net():",
        "    made = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))",
        "    nn.init.constant_(made[1].bias, float('inf'))",
        "    return made",
    )
    (tmp_path / "hub.py").write_text("\n".join(lines))
    message = message_of("hub.py:net", image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    expected = "--teacher hub.py:net: 1.bias holds 4 of 4 numbers that are not finite; its code made it so: "
    assert message.startswith(expected)


@pytest.mark.parametrize(
    ("spec", "file", "said"),
    [
        (
            "tv:resnet50",
            "resnet50-0676ba61.pth",
            "torchvision's IMAGENET1K_V1 (76.13 %, test images scaled to 256); there is @IMAGENET1K_V2 (80.86 %), too",
        ),
        (
            "tv:resnet50@IMAGENET1K_V2",
            "resnet50-11ad3fa6.pth",
            "torchvision's IMAGENET1K_V2 (80.86 %, test images scaled to 232); there is @IMAGENET1K_V1 (76.13 %), too",
        ),
        ("tv:resnet18", "resnet18-f37072fd.pth", "torchvision's IMAGENET1K_V1 (69.76 %, test images scaled to 256)"),
    ],
)
def test_which_of_the_published_weights_is_chosen_and_said(
    spec: str, file: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_importable()
    asked: list[str] = []

    def download(url: str, **_: Any) -> dict[str, Any]:
        asked.append(url)
        return {}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_args, **_kwargs: None)
    info = load_model(spec, pretrained=True)[1]
    assert [url.rpartition("/")[2] for url in asked] == [file]
    assert (info.published, info.name) == (said, spec)
    assert "published" not in info.header()


def test_a_file_in_place_of_the_weights_that_are_named_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for spec, says in (("tv:resnet50@IMAGENET1K_V2", True), ("tv:resnet50", False)):
        config = replace(default_config("fast"), teacher=spec, teacher_weights=tmp_path / "none.safetensors")
        with pytest.raises(UserError, match=r"none\.safetensors"):
            load_teacher(config, None, None, on_step=lambda: None)  # type: ignore[arg-type]
        said = (
            f"--teacher {spec}: --teacher-weights brings other weights; what neither flags nor that file say of images"
        )
        assert capsys.readouterr().out.startswith(said) == says


def test_weights_that_cannot_be_had() -> None:
    assert message_of("tv:resnet50@V2", pretrained=True) == (
        "--teacher tv:resnet50@V2: torchvision has no such weights; choose @IMAGENET1K_V1 or @IMAGENET1K_V2"
    )
    known = "@IMAGENET1K_V1 or @IMAGENET1K_V2"
    assert message_of("tv:resnet50@", pretrained=True) == (
        f"--teacher tv:resnet50@: names no weights behind the @; choose {known}, or leave it out"
    )
    _, info = load_model("tv:resnet18@IMAGENET1K_V1", num_classes=7, image_size=64)
    assert (info.num_classes, info.image_size, info.published) == (7, (64, 64), ""), "its configuration alone"
    spec = "tv:resnet50@IMAGENET1K_V2"
    config = replace(default_config("fast"), teacher=spec, student=spec)
    with pytest.raises(
        UserError, match=r"^--student tv:resnet50@IMAGENET1K_V2: starts untrained, .*; choose tv:resnet50$"
    ):
        config.check()
    with pytest.raises(UserError, match=r"^--teacher tv:resnet50@IMAGENET1K_V2: starts untrained"):
        replace(config, student="cnn", train_teacher=True).check()


def test_published_weights_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_importable()

    def offline(url: str, **_: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    assert message_of("tv:resnet18", pretrained=True) == (
        "--teacher tv:resnet18: its published weights could not be fetched (<urlopen error no route to host>); "
        "give --teacher-weights"
    )


def test_weights_replace_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(url: str, **_: Any) -> None:
        raise AssertionError(f"asked for {url}")

    state = fetched_state()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", never)
    torch.save(state, tmp_path / "mine.pth")
    model, _ = load_model("tv:resnet18", weights=tmp_path / "mine.pth", pretrained=True)
    assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])


def test_ensure_importable_can_be_called_again() -> None:
    ensure_importable()
    ensure_importable()
    import torchvision

    assert isinstance(torchvision.models.resnet18(num_classes=3), nn.Module)
