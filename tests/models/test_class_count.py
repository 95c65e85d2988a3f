"""A teacher's number of classes is stated, or read off the last layer of its file; a guess is always printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd_fast.cli.main import main
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model

INPUT = {"image_size": 32, "mean": (0.5,) * 3, "std": (0.2,) * 3}
FLAGS = ("--image-size", "32", "--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.2", "0.2")


def file_of(folder: Path, spec: str, classes: int, wrap: str = "{}") -> Path:
    """A checkpoint that says nothing of its classes."""
    state = load_model(spec, num_classes=classes, **INPUT)[0].state_dict()
    torch.save({"net": {wrap.format(name): value for name, value in state.items()}}, folder / "t.pth")
    return folder / "t.pth"


@pytest.mark.parametrize("spec", ["cnn", "tv:squeezenet1_1", "timm:test_byobnet"])
@pytest.mark.parametrize("classes", [7, 10])
def test_the_last_layer_tells(tmp_path: Path, spec: str, classes: int) -> None:
    """Whatever a library or a preset's data set would say, and whatever stands before the names."""
    file = file_of(tmp_path, spec, classes, "module.{}")
    model, info = load_model(spec, weights=file, data_set="cifar100", **INPUT)
    assert info.num_classes == classes
    assert info.sources["num_classes"] == "the last layer in its file"
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, classes)


@pytest.mark.parametrize(("teacher", "student"), [(7, 10), (7, 5), (10, 7)])
@pytest.mark.parametrize("is_nested", [True, False])
def test_networks_for_different_numbers_in_one_file(
    tmp_path: Path, teacher: int, student: int, is_nested: bool
) -> None:
    options: dict[str, Any] = dict(INPUT)
    states = {
        name: load_model("resnet8", num_classes=count, **options)[0].state_dict()
        for name, count in (("teacher", teacher), ("student", student))
    }
    flat = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    torch.save(states if is_nested else flat, tmp_path / "t.pth")
    options["weights"] = tmp_path / "t.pth"
    with pytest.raises(UserError, match="holds 2 networks that could be meant; choose one by --teacher-weights-key: "):
        load_model("resnet8", **options)
    with pytest.raises(UserError, match="--teacher-weights-key teechar: did you mean teacher"):
        load_model("resnet8", weights_key="teechar", **options)
    assert load_model("resnet8", weights_key="teacher", **options)[1].num_classes == teacher
    assert load_model("resnet8", weights_key="student", **options)[1].num_classes == student
    assert load_model("resnet8", num_classes=student, **options)[1].num_classes == student


def test_what_flags_state_must_be_what_the_file_has(tmp_path: Path) -> None:
    file = file_of(tmp_path, "cnn", 7)
    assert load_model("cnn", weights=file, num_classes=7, **INPUT)[1].sources["num_classes"] == "--num-classes"
    with pytest.raises(UserError) as caught:
        load_model("cnn", weights=file, num_classes=10, **INPUT)
    expected = (
        f"--teacher-weights {file}: its last layer is for 7 classes, not 10; give --num-classes 7, or leave it out"
    )
    assert str(caught.value) == expected


def test_code_of_ones_own_is_told_by_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\ndef net(kinds=3):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, kinds))\n"
    )
    file = file_of(tmp_path, "own.py:net?kinds=7", 7)
    assert load_model("own.py:net?kinds=7", weights=file, **INPUT)[1].num_classes == 7
    with pytest.raises(
        UserError, match=r"last layer is for 7 classes, and --teacher own.py:net builds one for 3; say by "
    ):
        load_model("own.py:net", weights=file, **INPUT)


def test_a_file_that_does_not_fit_says_so_as_before(tmp_path: Path) -> None:
    file = file_of(tmp_path, "cnn_s", 7)
    with pytest.raises(UserError, match="does not fit cnn "):
        load_model("cnn", weights=file, **INPUT)
    with pytest.raises(UserError, match=r"num_classes not known: .* as --num-classes 10$"):
        load_model("cnn", **INPUT)


def test_every_command_says_where_it_has_the_number_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(file_of(tmp_path, "cnn", 10))
    commands = (
        ["eval", file, "--student", "cnn", "--data", "digits", "--device", "cpu"],
        ["teacher", "info", file, "--network", "cnn"],
    )
    for command in commands:
        capsys.readouterr()
        assert main([*command, *FLAGS]) == 0
        assert "the last layer in its file" in capsys.readouterr().out
