"""The accuracy that a foreign checkpoint states is what its network is held to before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dfkd_fast.cli.main import main
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.weights.contents import find_claim
from dfkd_fast.models.weights.read import read_weights

INPUT: dict[str, Any] = {"num_classes": 10, "image_size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
FLAGS = ("--image-size", "32", "--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5", "--device", "cpu")

LOOP: dict[str, Any] = {"acc": 0.5}
LOOP["metrics"] = LOOP


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"best_prec1": 91.5}, (0.915, "best_prec1")),
        ({"best_acc1": torch.tensor(76.25)}, (0.7625, "best_acc1")),
        ({"best_acc": 0.875, "epoch": 3}, (0.875, "best_acc")),
        ({"acc": 95.0, "net": {"acc": torch.ones(3)}}, (0.95, "acc")),
        ({"val/acc@1": 0.5}, (0.5, "val/acc@1")),
        ({"valAcc": "93.75%"}, (0.9375, "valAcc")),
        ({"metrics": {"top1": 80, "top5": 99}}, (0.8, "metrics.top1")),
        ({"metrics": {"train": {"acc": 0.99}, "val": {"accuracy": 0.75}}}, (0.75, "metrics.val.accuracy")),
        ({"best_acc": 0.9, "acc": 0.75}, (0.75, "acc")),
        ({"val_acc": 0.9, "test_acc": 0.75}, (0.75, "test_acc")),
        (LOOP, (0.5, "acc")),
        ({"best_acc": 93.2, "acc": 1}, (0.01, "acc")),
        ({"best_acc1": 93.2, "best_acc": 0.5}, (0.005, "best_acc")),
        ({"acc": 10**400}, None),
        ({"metric": 0.5}, None),
        ({"train_acc": 0.99, "top5": 0.99, "acc5": 99.0, "best_loss": 0.5, "epoch": 1, "acc_steps": 2}, None),
        ({"acc": 0.0}, None),
        ({"acc": -1}, None),
        ({"acc": 101.0}, None),
        ({"acc": float("nan")}, None),
        ({"acc": True}, None),
        ({"acc": torch.ones(2)}, None),
        ({"acc": "good"}, None),
        ({"acc": None, 3: 0.5}, None),
    ],
)
def test_what_states_an_accuracy(content: dict[Any, Any], expected: tuple[float, str] | None) -> None:
    assert find_claim(content) == expected


@pytest.mark.parametrize("value", [np.float64(0.75), np.float32(75.0), np.int64(75), torch.tensor(0.75), 75.0])
def test_numbers_of_numpy_are_read_and_none_of_its_code_is_run(tmp_path: Path, value: object) -> None:
    torch.save({"net": {"w": torch.ones(2)}, "args": np.ones(3), "best_acc": value}, tmp_path / "t.pth")
    assert read_weights(tmp_path / "t.pth", flag="--weights").claim == (0.75, "best_acc")


def test_a_network_far_below_its_files_word_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the entry that says so, in torch's files as in safetensors'; `teacher info` shows it."""
    torch.manual_seed(0)
    state = load_model("cnn", **INPUT)[0].state_dict()
    torch.save({"net": state, "best_prec1": 99.0}, tmp_path / "t.pth")
    save_file(state, tmp_path / "t.safetensors", {"accuracy": "0.99"})
    for name, entry in (("t.pth", "best_prec1"), ("t.safetensors", "accuracy")):
        file = str(tmp_path / name)
        info = load_model("cnn", weights=tmp_path / name, **INPUT)[1]
        assert (info.claimed_top1, info.claimed_by) == (0.99, entry)
        capsys.readouterr()
        assert main(["teacher", "info", file]) == 0
        assert f"0.9900 (says {entry} in its file)" in capsys.readouterr().out
