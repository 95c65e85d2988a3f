"""A run that was stopped and resumed is the run that was not stopped, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dfkd_fast.cli.main import main
from dfkd_fast.files import write as files
from dfkd_fast.training.checkpoints.checkpoint import latest_checkpoint
from dfkd_fast.training.teachers.train import _Trainer

TINY = [
    *("train", "nayer", "--preset", "digits", "--threads", "1", "--precision", "fp32"),
    *("--epochs", "4", "--warmup-epochs", "1", "--warmup-rounds", "2", "--rounds", "1", "--synthesis-steps", "3"),
    *("--synthesis-batch-size", "20", "--student-steps", "4", "--batch-size", "16", "--generator-width", "16"),
    *("--teacher-recipe.epochs", "2", "--log.every", "2"),
]


@pytest.fixture(autouse=True)
def shared_teacher(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One teacher for this file's runs, and none of the user's."""
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path_factory.getbasetemp() / "teachers"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    os.environ["DFKD_FAST_CACHE"] = str(tmp_path_factory.getbasetemp() / "teachers")
    assert main([*TINY, "--run-dir", str(folder)]) == 0
    return folder


def same_run(a: Path, b: Path) -> None:
    """Equal students, method states, optimisers, pools and metrics; only times may differ."""
    for name, value in load_file(a / "student.safetensors").items():
        assert torch.equal(value, load_file(b / "student.safetensors")[name]), name
    left, right = latest_checkpoint(a / "checkpoints"), latest_checkpoint(b / "checkpoints")
    assert left is not None
    assert right is not None
    assert (left.epoch, left.phase) == (right.epoch, right.phase)
    assert left.tensors.keys() == right.tensors.keys()
    assert all(torch.equal(value, right.tensors[name]) for name, value in left.tensors.items())
    assert left.record["counts"] == right.record["counts"]
    for file in sorted((a / "pool").rglob("*.bin")):
        assert file.read_bytes() == (b / file.relative_to(a)).read_bytes()
    assert metrics(a) == metrics(b)


def metrics(folder: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in item.items() if key not in ("seconds", "elapsed", "core_seconds")}
        for item in records
    ]


@pytest.mark.parametrize("epochs", [1, 2])
def test_stop_after_epoch_and_resume(whole: Path, tmp_path: Path, epochs: int) -> None:
    """After the warm-up only, and after a distilled epoch."""
    folder = tmp_path / "run"
    assert main([*TINY, "--run-dir", str(folder), "--stop-after-epoch", str(epochs)]) == 0
    assert not (folder / "student.safetensors").exists()
    assert json.loads((folder / "run.json").read_text())["complete"] is False
    assert main(["train", "--resume", str(folder)]) == 0
    same_run(whole, folder)


def test_work_after_the_last_checkpoint_is_dropped(whole: Path, tmp_path: Path) -> None:
    """Epoch 3 is run, lost, and run again; its images do not come twice."""
    folder = tmp_path / "run"
    keep = ["--checkpoint.keep", "9"]
    assert main([*TINY, *keep, "--run-dir", str(folder), "--stop-after-epoch", "3"]) == 0
    for lost in (folder / "checkpoints").glob("00002-*"):
        shutil.rmtree(lost)
    found = latest_checkpoint(folder / "checkpoints")
    assert found is not None
    assert found.epoch == 1
    assert main(["train", "--resume", str(folder)]) == 0
    same_run(whole, folder)


def test_a_run_that_is_stopped_as_asked_has_a_checkpoint_there(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    every = ["--checkpoint.every", "3"]
    assert main([*TINY, *every, "--run-dir", str(folder), "--stop-after-epoch", "2"]) == 0
    found = latest_checkpoint(folder / "checkpoints")
    assert found is not None
    assert (found.epoch, found.phase) == (1, "distillation")
    assert main(["train", "--resume", str(folder)]) == 0
    same_run(whole, folder)


def test_a_run_that_lost_every_checkpoint_starts_again(whole: Path, tmp_path: Path) -> None:
    """Nothing of what it recorded and made before comes twice."""
    folder = tmp_path / "run"
    assert main([*TINY, "--run-dir", str(folder), "--stop-after-epoch", "2"]) == 0
    shutil.rmtree(folder / "checkpoints")
    assert main(["train", "--resume", str(folder)]) == 0
    same_run(whole, folder)


def test_a_disk_that_fills_up_while_metrics_are_written(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    assert main([*TINY, "--run-dir", str(folder), "--stop-after-epoch", "2"]) == 0
    capsys.readouterr()

    def full(handle: int, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(files, "_write_all", full)
        assert main(["train", "--resume", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dfkd-fast: --run-dir {folder}: no room to write (")
    assert line.endswith(f"free space, then --resume {folder}")
    assert main(["train", "--resume", str(folder)]) == 0
    same_run(whole, folder)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_resume_repeats_the_phase(
    whole: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "dfkd_fast", *TINY, "--run-dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "00000-0-synthesis").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, errors
    assert errors.strip() == f"dfkd-fast: stopped by {signum.name}; to go on: dfkd-fast train --resume {folder}"
    assert not (folder / "student.safetensors").exists()
    assert main(["train", "--resume", str(folder)]) == 0
    same_run(whole, folder)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_teacher_is_trained_leaves_nothing_behind(
    tmp_path: Path, signum: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    step, folder = _Trainer.step, tmp_path / "run"

    def interrupted(trainer: _Trainer, indices: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signum)
        return step(trainer, indices)

    monkeypatch.setattr(_Trainer, "step", interrupted)
    assert main([*TINY, "--run-dir", str(folder)]) == 128 + signum
    expected = f"dfkd-fast: stopped by {signum.name} before anything was written\n"
    assert capsys.readouterr().err == expected
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_resuming_a_complete_run_changes_nothing(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "student.safetensors").read_bytes()
    assert main(["train", "--resume", str(whole)]) == 0
    assert (whole / "student.safetensors").read_bytes() == before
    assert "student top-1" in capsys.readouterr().out


def test_a_resumed_run_keeps_its_config(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(whole), "--bn-weight", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (f"dfkd-fast: --method.bn-weight 3.0: the run in {whole} has 10.0; a resumed run keeps its config")
