"""Exported networks answer as the student does, say what they take, and are not there where they do not."""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from stopped_run import Runs, make_runs, tiny, write_teacher
from torch import Tensor

from dfkd_fast.cli.main import main
from dfkd_fast.config.train import SavedNetworkInput
from dfkd_fast.deploy import formats
from dfkd_fast.deploy.check import Images, compare
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.normalized import NormalizedNetwork
from dfkd_fast.training.checkpoints.checkpoint import load_network, read_checkpoint, save_network
from dfkd_fast.training.checkpoints.state_tensors import part_tensors
from dfkd_fast.training.saved import load_saved
from dfkd_fast.training.train import train

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
NO_ONNX = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make_runs(tmp_path_factory.mktemp("deploy"))


def normalised(file: Path, images: Tensor) -> Tensor:
    """What a network answers to images in [0, 1], by its own header."""
    model, info = load_network(file)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
    with torch.no_grad():
        return model.eval()((images - mean) / std)


@pytest.mark.parametrize("to", [pytest.param("onnx", marks=NO_ONNX), *[to for to in formats.FORMATS if to != "onnx"]])
def test_the_page_loads_what_is_exported(
    to: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its three lines for each format run in a folder with the exported file, on another number of images."""
    file = tmp_path / f"student{formats.FORMATS[to].ending}"
    data = ["--data", "digits", "--real-images", "40"] if to == "onnx" else []
    assert main(["export", str(runs.ended), "--to", to, "--out", str(file), *data]) == 0
    shown = capsys.readouterr().out
    said = json.loads(Path(f"{file}.json").read_text())
    assert said["sha256"] == sha256(file.read_bytes()).hexdigest()
    assert said["sha256"] in shown
    assert "69 images of the run's pool: logits differ by" in shown
    assert said["checks"][0]["agreement"] == 1.0
    assert [check["images"] for check in said["checks"]] == ([69, 48] if data else [69])
    assert said["input"]["shape"] == ["batch", 3, 32, 32]

    (snippet,) = re.findall(rf"`--to {to}`.*?```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(snippet.split("\n")) <= 5, "three lines, and an empty one behind the import"
    monkeypatch.chdir(tmp_path)
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    names: dict[str, object] = {"images": images.numpy() if to == "onnx" else images}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(snippet, "export.md", "exec"), names)
    found = torch.as_tensor(np.asarray(names["logits"]))
    assert torch.allclose(found, normalised(runs.ended / "student.safetensors", images), atol=1e-5)


def test_the_student_of_a_stopped_run(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the checkpoint's, and goes where a run's exports go."""
    assert main(["export", str(runs.stopped), "--to", "torchscript"]) == 0
    assert "after distillation of epoch 2 of 3 (the run has not ended)" in capsys.readouterr().out
    images = torch.rand(3, 3, 32, 32)
    exported = torch.jit.load(str(runs.stopped / "export" / "student.pt"))
    saved = load_saved(runs.stopped, SavedNetworkInput(), flag="export")
    again = NormalizedNetwork(saved.model, saved.info)
    with torch.no_grad():
        assert torch.allclose(exported(images), again(images), atol=1e-6)
        assert not torch.allclose(exported(images), normalised(runs.ended / "student.safetensors", images), atol=1e-3)
    assert main(["eval", str(runs.stopped), "--data", "digits", "--threads", "1"]) == 0
    assert main(["export", str(runs.stopped), "--to", "torchscript"]) == 2  # it is there


def test_a_file_of_one_channel_with_names(tmp_path: Path) -> None:
    """Without a run there is no pool: noise is compared. A name of the network's own stays with it."""
    torch.manual_seed(0)
    names = ("cat", "d\u00f6g")
    model, info = load_model(
        "cnn_s", num_classes=2, image_size=(16, 24), mean=(0.4,), std=(0.2,), in_chans=1, class_names=names
    )
    save_network(tmp_path / "net.safetensors", model, info)
    assert main(["export", str(tmp_path / "net.safetensors"), "--to", "torch-export"]) == 0
    said = json.loads((tmp_path / "net.pt2.json").read_text())
    assert said["class_names"] == list(names)
    assert said["input"]["shape"] == ["batch", 1, 16, 24]
    assert said["checks"][0]["source"].startswith("images of noise")
    inside = {formats.ABOUT_FILE: ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=inside)
    assert json.loads(inside[formats.ABOUT_FILE])["class_names"] == list(names)
    assert program.module()(torch.rand(7, 1, 16, 24)).shape == (7, 2)


def test_what_answers_otherwise_is_not_written(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    form = formats.FORMATS["safetensors"]

    def wrong(file: Path) -> formats.Answer:
        answer = form.read(file)
        return lambda images: answer(images) + 0.01

    monkeypatch.setitem(formats.FORMATS, "safetensors", form._replace(read=wrong))
    out = tmp_path / "made" / "student.safetensors"
    assert main(["export", str(runs.ended), "--to", "safetensors", "--out", str(out)]) == 2
    assert "does not answer as the network does (69 images" in capsys.readouterr().err
    assert [*tmp_path.rglob("*")] in ([], [out.parent])


def test_a_comparison_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Of three images one gets another class; one that fails on a single image is no network for any number."""
    answers = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.2]])
    shown = Images("images", [torch.zeros(3, 1, 1, 1)])

    def network(images: Tensor) -> Tensor:
        return answers[: len(images)]

    def other(images: Tensor) -> Tensor:
        return answers[: len(images)] + torch.tensor([0.0, 0.2])

    found = compare(network, other, shown, tolerance=0.5, what="x")
    assert found.agreement == pytest.approx(2 / 3)
    assert found.max_difference == pytest.approx(0.2)
    with pytest.raises(UserError, match=r"--tolerance 0\.1"):
        compare(network, other, shown, tolerance=0.1, what="x")
    with pytest.raises(UserError, match="x: fails on 1 images"):
        compare(network, lambda images: other(images) if len(images) > 1 else 1 / 0, shown, tolerance=1, what="x")
    with pytest.raises(UserError, match="not finite"):
        compare(network, lambda images: other(images) * torch.nan, shown, tolerance=1, what="x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere --to onnx", "export nowhere: no such run folder or file"),
        (". --to onnx", "export .: no run there (it has no config.toml)"),
        ("x", "--to: missing; choose onnx, torch-export, torchscript or safetensors"),
        ("x --to onx", "--to onx: did you mean onnx? choose onnx, torch-export, torchscript or safetensors"),
        ("x --to onnx --out x.pt", "--out x.pt: choose a name that ends in .onnx, as --to onnx writes"),
        ("x --to onnx --opset 9", "--opset 9: choose 18 or more"),
    ],
)
def test_mistakes(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments.split()]) == 2
    assert capsys.readouterr().err == f"dfkd-fast: {message}\n"
    assert [*tmp_path.iterdir()] == []


@pytest.mark.nightly
def test_a_student_on_its_teachers_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that was stopped, too, the whole network is exported: student, projector and classifier."""
    config = tiny("hidfd", write_teacher(tmp_path / "teacher.safetensors"), tmp_path / "run", stop_after_epoch=2)
    train(config)
    saved = load_saved(tmp_path / "run", SavedNetworkInput(), flag="export")
    assert "+shared" in saved.info.name
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    deployed = part_tensors("deployed", read_checkpoint(newest).tensors)
    assert deployed.keys() == saved.model.state_dict().keys()
    assert main(["export", str(tmp_path / "run"), "--to", "torchscript"]) == 0
    assert "traced, as it cannot be scripted" in capsys.readouterr().out
