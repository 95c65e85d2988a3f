"""Images without a student: the same by seed, stopped or not, in every form that can be asked for, with a manifest."""

from __future__ import annotations

import json
import signal
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dfkd_fast
from dfkd_fast.cli.main import main
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.deploy import synthesis
from dfkd_fast.deploy.image_sets import folder_names
from dfkd_fast.deploy.synth import synth
from dfkd_fast.errors import UserError
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.exchange.imports import import_pool
from dfkd_fast.training.interrupt import Interrupted, StopSignals

sys.path.append(str(Path(__file__).parents[1] / "methods"))
from tiny_runs import write_teacher

RECIPE = {"synthesis_batch_size": 4, "synthesis_steps": 2, "threads": 1, "device": "cpu"}
FLAGS = [f"--{key.replace('_', '-')}={value}" for key, value in RECIPE.items()]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def made(teacher: Path, out: Path, method: str = "deepinversion", *more: str) -> dict[str, np.ndarray]:
    """Ten images, as arrays."""
    arguments = ["synth", "cnn", "--teacher-weights", str(teacher), "--n", "10", "--out", str(out)]
    assert main([*arguments, "--method", method, *FLAGS, *more]) == 0
    assert [path.name for path in out.parent.glob("*.synth")] == []
    return dict(np.load(out))


def test_a_folder_of_classes(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "images"
    arguments = ["--n", "10", "--out", str(out), "--licence", "as the teacher's", "--preset", "cifar10", *FLAGS]
    assert main(["synth", "cnn", "--teacher-weights", str(teacher), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "wrote 10 images to" in shown
    said = json.loads((out / "manifest.json").read_text())
    assert said["folders"] == said["class_names"] == [*dfkd_names()]
    assert (said["images"], said["licence"], said["seed"]) == (10, "as the teacher's", 0)
    assert said["recipe"]["synthesis_steps"] == 2
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*.png")}
    assert len(files) == 10
    counts = [len([*(out / folder).glob("*")]) for folder in said["folders"]]
    assert said["per_class"] == counts
    assert min(counts) == 0, "ten images that are drawn leave out some class"
    assert f"no image of {counts.count(0)} classes" in shown
    assert sum((out / folder).exists() for folder in said["folders"]) == 10 - counts.count(0)
    assert said["files"] == {name: sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert all(Image.open(path).size == (32, 32) for path in files.values())
    assert main(["synth", "cnn", "--teacher-weights", str(teacher), *arguments]) == 2  # it is there


def dfkd_names() -> tuple[str, ...]:
    from dfkd_fast.config.data_sets import DATA_SETS

    return DATA_SETS["cifar10"].class_names


@pytest.mark.parametrize("method", ["deepinversion", "fast", pytest.param("cmi", marks=pytest.mark.nightly)])
def test_a_stopped_call_goes_on(
    method: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It makes what a call makes that is not stopped; another seed makes others; another recipe is refused there."""
    small = {"fast": ["--generator-width=8"], "cmi": ["--generator-width=8", "--bank-size=8", "--num-negatives=4"]}
    more = small.get(method, [])
    whole = made(teacher, tmp_path / "whole.npz", method, *more)
    assert whole["images"].shape == (10, 32, 32, 3)
    assert whole["labels"].shape == (10,)

    class Stopping(StopSignals):
        steps = 0

        def check(self) -> None:
            self.steps += 1
            if self.steps == 5:  # within the third batch
                raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(synthesis, "EVERY", 0.0)
    flags = ["--teacher", "cnn", "--teacher-weights", str(teacher), "--no-train-teacher", *FLAGS, *more]
    config, out = load_config(default_config(method), flags=flags), tmp_path / "part.npz"
    with pytest.raises(Interrupted):
        synth(config, 10, out, licence="", signals=Stopping(), say=lambda line: None)
    assert not out.exists()
    with pytest.raises(UserError, match="holds images of a stopped call with other settings"):
        synth(load_config(config, flags=["--seed=1"]), 10, out, licence="", signals=StopSignals(), say=print)
    part = made(teacher, out, method, *more)
    assert "goes on after 8 of 10 images" in capsys.readouterr().out
    assert all(np.array_equal(part[name], whole[name]) for name in whole)
    if method == "fast":
        other = made(teacher, tmp_path / "other.npz", method, *more, "--seed=1")
        assert not np.array_equal(other["images"], whole["images"])


def test_a_folder_is_read_back(teacher: Path, tmp_path: Path) -> None:
    """Classes that nobody has named are numbers, which are labels again."""
    base = ["synth", "cnn", "--teacher-weights", str(teacher), "--n", "5", *FLAGS]
    assert main([*base, "--out", str(tmp_path / "set")]) == 0
    assert import_pool(tmp_path / "set", tmp_path / "pool") == 5
    (block,) = (block for _, block in PoolFiles(tmp_path / "pool").read(0, 5))
    again = made(teacher, tmp_path / "set.npz")
    assert sorted(block["labels"].tolist()) == sorted(again["labels"][:5].tolist())


def test_tars(teacher: Path, tmp_path: Path) -> None:
    base = ["synth", "cnn", "--teacher-weights", str(teacher), "--n", "5", *FLAGS]
    assert main([*base, "--out", str(tmp_path / "set.tar")]) == 0
    assert main([*base, "--out", str(tmp_path / "shards-%06d.tar")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"set.tar", "set.tar.json", "shards-000000.tar", "shards.json"}
    with tarfile.open(tmp_path / "set.tar") as tar:
        names = tar.getnames()
    assert len(names) == 5
    assert all(name.split("/")[0] in {f"{number:05d}" for number in range(10)} for name in names)
    with tarfile.open(tmp_path / "shards-000000.tar") as tar:
        assert sorted(tar.getnames())[:2] == ["00000000.cls", "00000000.png"]
    said = json.loads((tmp_path / "shards.json").read_text())
    assert said["files"] == {"shards-000000.tar": sha256((tmp_path / "shards-000000.tar").read_bytes()).hexdigest()}


def test_tensors_in_python(teacher: Path, tmp_path: Path) -> None:
    found = dfkd_fast.synthesize("cnn", 6, teacher_weights=teacher, **RECIPE)
    assert isinstance(found, dfkd_fast.SyntheticImages)
    assert found.images.shape == (6, 3, 32, 32)
    assert 0 <= found.images.min() < found.images.max() <= 1
    again = made(teacher, tmp_path / "again.npz")  # of more images, which begin as fewer do
    assert np.array_equal(again["images"][:4], (found.images[:4] * 255).round().permute(0, 2, 3, 1).byte().numpy())
    assert found.labels[:4].tolist() == again["labels"][:4].tolist()


def test_folders_that_every_system_takes() -> None:
    assert folder_names(["cat", "big dog"]) == ["cat", "big dog"]
    assert folder_names(["a/b", "a:b"]) == ["00000-a_b", "00001-a_b"]
    assert folder_names(["..", "Cat", "cat"]) == ["00000", "00001-Cat", "00002-cat"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("cnn --out x", "--n: missing; say how many images"),
        ("cnn --out x --n none", "--n none: expected a whole number"),
        ("cnn --n 3", "--out: missing; choose a folder"),
        ("--n 3 --out x", "synth --n: name the teacher first"),
        ("cnn --n 3 --out x.zip", "--out x.zip: choose a folder"),
        ("cnn --n 3 --out x --method zskt", "--method zskt: makes its images with a student; choose nayer, "),
        ("cnn --n 3 --out x --method fats", "train fats: did you mean fast?"),
        ("cnn --n 3 --out x", "--teacher cnn: no published weights; give --teacher-weights FILE"),
    ],
)
def test_mistakes(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["synth", *arguments.split()]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"dfkd-fast: {message}")
    assert shown.count("\n") == 1
    assert [*tmp_path.iterdir()] == []
