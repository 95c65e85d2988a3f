"""User mistakes: one line that names flag, value and choices, exit status 2, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dfkd_fast.cli.main import main
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.training.checkpoints.checkpoint import save_network

SHAPE = {"image_size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


@pytest.fixture
def mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command line that must fail; returns its one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(["train", "nayer", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("dfkd-fast: ")
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return line.removeprefix("dfkd-fast: ")

    return run


def network_file(folder: Path, spec: str, num_classes: int, name: str = "teacher.safetensors") -> str:
    model, info = load_model(spec, num_classes=num_classes, **SHAPE)
    save_network(folder / name, model, info)
    return str(folder / name)


def images(root: Path, classes: int = 3, count: int = 2, size: int = 16) -> str:
    for index in range(classes):
        folder = root / "test" / f"class{index}"
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (size, size), (index * 40, number * 40, 0)).save(folder / f"{number}.png")
    return str(root)


def test_teacher_without_weights(mistake: Callable[..., str]) -> None:
    line = mistake("--teacher", "resnet34", "--student", "resnet18")
    assert line == "--teacher resnet34: no published weights; give --teacher-weights FILE or --train-teacher"


def test_teacher_without_batchnorm(mistake: Callable[..., str], tmp_path: Path) -> None:
    model, _ = load_model("timm:test_vit", num_classes=3, image_size=160)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    line = mistake(
        *("--teacher", "timm:test_vit", "--teacher-weights", str(tmp_path / "vit.safetensors")),
        *("--student", "cnn_s", "--num-classes", "3"),
    )
    assert line.startswith("--teacher timm:test_vit: nayer matches BatchNorm statistics and this network has none")


def test_classes_of_teacher_and_data_differ(mistake: Callable[..., str], tmp_path: Path) -> None:
    weights, data = network_file(tmp_path, "cnn", 4), images(tmp_path / "data")
    line = mistake("--teacher", "cnn", "--teacher-weights", weights, "--student", "cnn_s", "--data", data)
    assert line == f"--data {Path(data).name}: 3 classes, but cnn knows 4"


def test_checkpoint_of_another_architecture(mistake: Callable[..., str], tmp_path: Path) -> None:
    weights = network_file(tmp_path, "cnn", 3)
    line = mistake("--teacher", "resnet8", "--teacher-weights", weights, "--student", "cnn_s")
    assert line.startswith(f"--teacher-weights {weights}: ")
    assert "missing" in line


def test_pickle_that_runs_code(mistake: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "teacher.pth"
    torch.save({"model": load_model("cnn", num_classes=3, **SHAPE)[0]}, file)
    line = mistake("--teacher", "cnn", "--teacher-weights", str(file), "--student", "cnn_s", "--num-classes", "3")
    assert line.startswith(f"--teacher-weights {file}: ")
    assert "not safe to read" in line


def test_corrupt_image_is_named(mistake: Callable[..., str], tmp_path: Path) -> None:
    weights, data = network_file(tmp_path, "cnn", 3), images(tmp_path / "data")
    broken = tmp_path / "data" / "test" / "class1" / "1.png"
    broken.write_bytes(b"no image")
    line = mistake("--teacher", "cnn", "--teacher-weights", weights, "--student", "cnn_s", "--data", data)
    assert line.startswith(f"--data {data}: ")
    assert "class1/1.png" in line


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_no_images(mistake: Callable[..., str], tmp_path: Path, kind: str) -> None:
    weights, data = network_file(tmp_path, "cnn", 3), tmp_path / "data"
    if kind == "empty":
        data.mkdir()
    line = mistake("--teacher", "cnn", "--teacher-weights", weights, "--student", "cnn_s", "--data", str(data))
    assert line.startswith(f"--data {data}: ")


def test_label_embeddings_of_other_classes(mistake: Callable[..., str], tmp_path: Path) -> None:
    weights, file = network_file(tmp_path, "cnn", 3), tmp_path / "text.safetensors"
    save_file({"embeddings": torch.ones(5, 8)}, file)
    line = mistake(
        *("--teacher", "cnn", "--teacher-weights", weights, "--student", "cnn_s", "--label-embeddings", str(file))
    )
    assert line == f"--text {file}: shape (5, 8); the teacher has 3 classes, so (3, D)"


def test_folder_that_holds_a_run(mistake: Callable[..., str], tmp_path: Path) -> None:
    weights = network_file(tmp_path, "cnn", 3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    line = mistake("--teacher", "cnn", "--teacher-weights", weights, "--student", "cnn_s", "--run-dir", "run")
    assert line == "--run-dir run: holds a run already; resume with --resume run, or choose another folder"


def test_folder_that_cannot_be_made(mistake: Callable[..., str], tmp_path: Path) -> None:
    """A file stands where the folder should: even root cannot make that."""
    weights = network_file(tmp_path, "cnn", 3)
    (tmp_path / "file").write_text("")
    line = mistake("--teacher", "cnn", "--teacher-weights", weights, "--student", "cnn_s", "--run-dir", "file/run")
    assert line == "--run-dir file/run: cannot be written (Not a directory)"


def test_folder_that_holds_a_run_is_noticed_before_a_teacher_is_trained(
    mistake: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    assert mistake("--preset", "digits", "--run-dir", "run").startswith("--run-dir run: holds a run already")


def test_class_vectors_are_missed_before_a_teacher_is_trained(
    mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    assert mistake("--preset", "digits", "--text", "class-centre").startswith("--text class-centre: nayer takes clip, ")
    assert mistake("--preset", "digits", "--text", "nowhere.safetensors").startswith("--text nowhere.safetensors: no ")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--pool.capacity 10", "--pool.capacity 10: choose 240000 or more for --pool.policy append (or --pool.policy "),
        ("--pool.capacity 10 --pool.policy ring", "--pool.capacity 10: choose 400 or more for --pool.policy ring"),
        (
            "--warmup-epochs 0 --rounds 0",
            "--method.rounds 0: makes no images; choose 1 or more, or --method.warmup-rounds ",
        ),
        ("--image-size 18", "--image-size 18: choose a multiple of 4, as this generator doubles its maps"),
    ],
)
def test_recipe_that_cannot_be_run(mistake: Callable[..., str], tmp_path: Path, flags: str, message: str) -> None:
    weights = network_file(tmp_path, "cnn", 3)
    line = mistake("--teacher", "cnn", "--teacher-weights", weights, "--student", "cnn_s", *flags.split())
    assert line.startswith(message)


def test_unknown_student(mistake: Callable[..., str], tmp_path: Path) -> None:
    weights = network_file(tmp_path, "cnn", 3)
    line = mistake("--teacher", "cnn", "--teacher-weights", weights, "--student", "resnet81")
    assert line.startswith("--student resnet81: did you mean resnet8? choose ")


def test_resume_where_there_is_no_run(mistake: Callable[..., str]) -> None:
    assert mistake("--resume", "nowhere").startswith("--resume nowhere: ")


def test_info_type_is_what_a_file_says(tmp_path: Path) -> None:
    """The fixtures above are what they claim: the header names the network."""
    model, info = load_model("cnn", weights=Path(network_file(tmp_path, "cnn", 4)))
    assert info == ModelInfo(name="cnn", num_classes=4, **SHAPE)
    assert sum(p.numel() for p in model.parameters()) > 0
