"""Other people's weights files: every usual wrapping loads the same network and says what it guessed; what is no
weights file, or leaves a choice, ends in one line.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfkd_fast.catalog import MODELS
from dfkd_fast.cli.main import main
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.weights.header import HEADER
from dfkd_fast.training.checkpoints.checkpoint import load_network

SHAPE: dict[str, Any] = {"num_classes": 3, "image_size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
State = dict[str, Tensor]


class Heads(nn.Module):
    """A network with a head for the training alone, and a part whose name is a wrapper's."""

    def __init__(self, num_classes: int, in_chans: int, image_size: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(in_chans, 4, 3), nn.BatchNorm2d(4))
        self.head, self.auxiliary = nn.Linear(4, num_classes), nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.features(x).relu().mean((2, 3))
        logits: Tensor = self.head(pooled)
        return logits + self.auxiliary(pooled) if self.training else logits


@pytest.fixture(autouse=True)
def heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "heads", (f"{__name__}:Heads", "test network"))


def state(seed: int = 0) -> State:
    torch.manual_seed(seed)
    return load_model("heads", **SHAPE)[0].state_dict()


def load(content: object, folder: Path, **options: Any) -> State:
    torch.save(content, folder / "t.pth")
    return load_model("heads", weights=folder / "t.pth", **SHAPE, **options)[0].state_dict()


def refusal(content: object, folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(content, folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def renamed(weights: State, old: str, new: str) -> State:
    return {key.replace(old, new): value for key, value in weights.items()}


def prefixed(weights: State, prefix: str) -> State:
    return {prefix + key: value for key, value in weights.items()}


WRAPPINGS: dict[str, Callable[[State], object]] = {
    "net": lambda own: {"net": own, "acc": 95.3, "epoch": 199},
    "model_state_dict": lambda own: {"model_state_dict": own, "loss": 0.1},
    "any key": lambda own: {"weights_of_mine": own, "history": [1, 2]},
    "two keys deep": lambda own: {"teacher": {"params": own}, "epoch": 3},
    "beside an optimiser": lambda own: {
        "model": own,
        "optimizer": {"state": {0: {"step": torch.ones(()), "momentum_buffer": torch.ones(9)}}, "param_groups": []},
        "optim_by_name": {"optimizer": {"head.weight": {"exp_avg": torch.ones(3)}}},
    },
    "beside a lone tensor": lambda own: {"best": torch.tensor(0.9), "state_dict": own},
    "Lightning": lambda own: {"state_dict": prefixed(own, "model."), "hyper_parameters": {"lr": 0.1}},
    "compiled within DataParallel": lambda own: prefixed(own, "module._orig_mod."),
    "any prefix": lambda own: {"state_dict": prefixed(own, "backbone.net.")},
    "one part in DataParallel": lambda own: renamed(own, "features.", "features.module."),
    "one part compiled, all in Lightning": lambda own: prefixed(
        renamed(own, "features.", "features._orig_mod."), "model."
    ),
    "a part renamed within": lambda own: renamed(own, "features.", "features.body."),
    "beside a criterion": lambda own: {"state_dict": prefixed(own, "model.") | {"criterion.weight": torch.ones(3)}},
    "AveragedModel": lambda own: prefixed(own, "module.") | {"n_averaged": torch.tensor(7)},
    "thop's counters": lambda own: own | {"features.0.total_ops": torch.ones(1), "total_params": torch.ones(1)},
    "numpy scalar": lambda own: {"state_dict": own, "best_acc": np.float64(95.2), "seen": np.int64(3)},
    "numpy array": lambda own: {"state_dict": own, "confusion": np.eye(3)},
    "argparse": lambda own: {"model": own, "args": argparse.Namespace(lr=0.1, out=Path("x"), deep=[np.float32(1)])},
    "half precision": lambda own: {"model": {key: value.half().float() for key, value in own.items()}},
    "epoch within": lambda own: own | {"epoch": 3},
    "no counters": lambda own: {key: value for key, value in own.items() if "batches" not in key},
    "no auxiliary head": lambda own: {key: value for key, value in own.items() if "auxiliary" not in key},
    "another auxiliary head": lambda own: own | {"aux_logits.weight": torch.ones(2)},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_every_wrapping_gives_the_same_network(tmp_path: Path, wrap: Callable[[State], object]) -> None:
    own = state()
    torch.manual_seed(1)
    found = load(wrap(own), tmp_path)
    if "auxiliary.weight" not in str(wrap(own)):
        found |= {key: own[key] for key in own if "auxiliary" in key}
    close = {key: value.half() if value.is_floating_point() else value for key, value in found.items()}
    assert_same(close, {key: value.half() if value.is_floating_point() else value for key, value in own.items()})


def test_what_was_guessed_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = state()
    load({"state_dict": own, "epoch": 1}, tmp_path)
    load(prefixed(own, "module."), tmp_path)
    assert not capsys.readouterr().out
    load({"state_dict": prefixed(own, "model.") | {"criterion.weight": torch.ones(3)}}, tmp_path)
    assert capsys.readouterr().out.endswith("t.pth: 1 entries are left over: criterion.weight\n")
    load(prefixed(own, "backbone."), tmp_path)
    assert capsys.readouterr().out.endswith("t.pth: takes its names without backbone\n")
    load({key: value for key, value in own.items() if "auxiliary" not in key}, tmp_path)
    assert "lacks 2 entries that no answer depends on: auxiliary.weight" in capsys.readouterr().out
    load({"generator": {"w": torch.ones(3)}, "student": own}, tmp_path)
    assert "takes student, not generator" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("net", "swa.model"), ("a", "ema_a")],
)
def test_averaged_weights_are_taken_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], raw: str, averaged: str
) -> None:
    outer, _, inner = averaged.partition(".")
    content = {raw: state(0), outer: {inner: state(1)} if inner else state(1)}
    assert_same(load(content, tmp_path), state(1))
    assert (
        f"takes the averaged weights, {averaged}, not {raw}; --teacher-weights-key chooses" in capsys.readouterr().out
    )
    assert_same(load(content, tmp_path, weights_key=raw), state(0))
    assert_same(load(content, tmp_path, weights_key=averaged), state(1))


def test_averaged_weights_under_a_prefix(tmp_path: Path) -> None:
    content = {"state_dict": prefixed(state(0), "model.") | prefixed(state(1), "ema_model.")}
    assert_same(load(content, tmp_path), state(1))
    assert_same(load(content, tmp_path, weights_key="state_dict.model"), state(0))


@pytest.mark.parametrize(
    "content",
    [
        lambda: {"student": state(0), "teacher": state(1)},
        lambda: prefixed(state(0), "student.") | prefixed(state(1), "teacher."),
    ],
)
def test_several_networks_are_listed(tmp_path: Path, content: Callable[[], State]) -> None:
    message = refusal(content(), tmp_path)
    assert "holds 2 networks that could be meant; choose one by --teacher-weights-key: student or teacher" in message
    assert_same(load(content(), tmp_path, weights_key="teacher"), state(1))
    assert refusal(content(), tmp_path, weights_key="teechar") == (
        "--teacher-weights-key teechar: did you mean teacher? choose student or teacher"
        if "student" in content()
        else "--teacher-weights-key teechar: did you mean teacher? choose student, teacher or ."
    )


def test_a_key_that_leads_to_another_network(tmp_path: Path) -> None:
    message = refusal({"generator": {"w": torch.ones(3)}, "student": state()}, tmp_path, weights_key="generator")
    assert "does not fit heads (" in message
    assert "; this is its generator, the nearest of 2 dicts of tensors" in message


def test_more_layers_than_the_network_has_are_no_leftovers(tmp_path: Path) -> None:
    """ResNet-56's names contain all of ResNet-20's: to take those would be another network without a word."""
    message = refusal(prefixed(state() | {"features.3.weight": torch.ones(4)}, "module."), tmp_path)
    assert message.endswith("does not fit heads (1 unexpected: features.3.weight)")


def test_parts_that_count_must_be_there(tmp_path: Path) -> None:
    missing = {key: value for key, value in state().items() if not key.startswith("head")}
    assert refusal(missing, tmp_path).endswith("does not fit heads (2 missing: head.weight, head.bias)")


ODD_TENSORS = {
    "sparse": (torch.eye(3, 4).to_sparse(), "head.weight is a sparse tensor"),
    "meta": (torch.ones(3, 4, device="meta"), "head.weight has no values (a meta tensor)"),
    "int8": (torch.ones(3, 4, dtype=torch.int8), "1 of another type: head.weight int8"),
    "complex": (torch.ones(3, 4, dtype=torch.cfloat), "1 of another type: head.weight complex64"),
    "float8": (torch.ones(3, 4).to(torch.float8_e4m3fn), "1 of another type: head.weight float8_e4m3fn"),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_are_no_plain_numbers(tmp_path: Path, kind: str) -> None:
    value, words = ODD_TENSORS[kind]
    assert words in refusal(state() | {"head.weight": value}, tmp_path)


def looped() -> dict[str, Any]:
    loop: dict[str, Any] = {"a": 1}
    loop["self"] = loop
    loop["list"] = [loop]
    return loop


def nested() -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(150):
        inner = {"deeper": inner}
    return inner


@pytest.mark.parametrize("content", [looped(), nested(), {}, OrderedDict(), {"state_dict": {}}, {"state_dict": None}])
def test_dicts_without_an_end_or_without_tensors(tmp_path: Path, content: dict[str, Any]) -> None:
    assert "not a state dict" in refusal(content, tmp_path)


def test_a_loop_beside_the_weights(tmp_path: Path) -> None:
    assert_same(load(looped() | {"state_dict": state()}, tmp_path), state())


def other_files() -> dict[str, tuple[Callable[[Path], object], str]]:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 46827520\n"

    def tar(path: Path, mode: str = "w") -> None:
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            archive.add(__file__, "x")

    def archive(path: Path, name: str) -> None:
        with zipfile.ZipFile(path, "w") as found:
            found.writestr(name, "x")

    return {
        "Git-LFS pointer": (lambda path: path.write_text(pointer), "git lfs pull"),
        "web page": (lambda path: path.write_text("\n <!DOCTYPE HTML><html>Sign in</html>"), "the download went wrong"),
        "tar": (tar, "unpack it"),
        "gzip": (lambda path: tar(path, "w:gz"), "unpack it"),
        "xz": (lambda path: tar(path, "w:xz"), "unpack it"),
        "zip": (lambda path: archive(path, "weights.pth"), "unpack it"),
        "NumPy": (lambda path: archive(path, "conv1.npy"), "state_dict"),
        "TorchScript": (lambda path: archive(path, "t/constants.pkl"), "state_dict"),
        "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "state_dict"),
        "empty": (Path.touch, "fetch it again"),
    }


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", other_files())
def test_what_is_no_weights_file_is_called_what_it_is(tmp_path: Path, kind: str, suffix: str) -> None:
    write, hint = other_files()[kind]
    path = tmp_path / f"t{suffix}"
    write(path)
    with pytest.raises(UserError) as caught:
        load_model("heads", weights=path, **SHAPE)
    message = str(caught.value)
    assert message.startswith(f"--teacher-weights {path}: is a")
    assert kind in message
    assert hint in message
    assert "\n" not in message


def test_the_content_says_which_format_it_is(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "a.pth")
    torch.save(state(), tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        assert_same(load_model("heads", weights=tmp_path / name, **SHAPE)[0].state_dict(), state())


GOOD = {"name": "heads", "num_classes": 3, "image_size": 8, "mean": [0.5] * 3, "std": [0.2] * 3, "in_chans": 3}


@pytest.mark.parametrize(
    "header",
    [
        "no JSON",
        "[1, 2]",
        "[" * 100_000,
        '"text"',
        "null",
        "{}",
        *(
            json.dumps(GOOD | change)
            for change in (
                {"name": None},
                {"name": 3},
                {"num_classes": 0},
                {"num_classes": -3},
                {"num_classes": 10**400},
                {"num_classes": True},
                {"num_classes": 3.5},
                {"image_size": None},
                {"image_size": 10**9},
                {"mean": None},
                {"mean": []},
                {"mean": "abc"},
                {"mean": [0.5, None, 0.5]},
                {"mean": [float("nan")] * 3},
                {"mean": [0.5]},
                {"std": [0.0] * 3},
                {"std": [-1.0] * 3},
                {"std": [float("inf")] * 3},
                {"in_chans": 4},
            )
        ),
    ],
)
def test_damaged_headers(tmp_path: Path, header: str) -> None:
    path = tmp_path / "t.safetensors"
    save_file(state(), path, metadata={HEADER: header})
    for read in (lambda: load_network(path, flag="eval"), lambda: load_model("heads", weights=path, flag="--student")):
        with pytest.raises(UserError, match=r"its header is damaged \(") as caught:
            read()
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 300


def test_headers_of_newer_and_older_programs(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    _, info = load_model("heads", **SHAPE)
    for header in (GOOD | {"invented": [1, {"later": 2}]}, {key: GOOD[key] for key in GOOD if key != "in_chans"}):
        save_file(state(), path, metadata={HEADER: json.dumps(header)})
        assert load_network(path)[1] == info


STATED = ["--num-classes", "10", "--image-size", "32", "--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.2", "0.2"]


def test_teacher_info_and_eval_choose_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "t.pth")
    torch.save({"student": state(0), "teacher": {"head.weight": torch.ones(7)}}, file)
    assert main(["teacher", "info", file]) == 2
    assert "choose one by --weights-key: student or teacher" in capsys.readouterr().err
    assert main(["teacher", "info", file, "--weights-key", "teacher"]) == 0
    assert "parameters        7\n" in capsys.readouterr().out
    assert main(["eval", file, "--student", "cnn_s", "--data", "digits", "--weights-key", "teech", *STATED]) == 2
    assert "--weights-key teech: did you mean teacher?" in capsys.readouterr().err
    torch.save({"student.head.weight": torch.ones(5), "teacher.head.weight": torch.ones(7)}, file)
    assert main(["teacher", "info", file, "--weights-key", "teacher"]) == 0, "a prefix, as train and eval take it"
    assert "parameters        7\n" in capsys.readouterr().out
