"""A run folder that cannot be: one line before anything is made; a start that fails leaves nothing."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dfkd_fast
from dfkd_fast.cli.main import main
from dfkd_fast.config.sources import default_config
from dfkd_fast.errors import UserError
from dfkd_fast.files.locks import lock_file
from dfkd_fast.pool.disk.shards import drop_other_shards
from dfkd_fast.training.checkpoints.sources import SOURCES_FILE
from dfkd_fast.training.ranks import drop_other_checkpoints
from dfkd_fast.training.records import run_folder, run_record
from dfkd_fast.training.records.run_folder import claim_folder, locked_folder, taken_back_on_failure
from dfkd_fast.training.teachers.state import TrainingState

NAYER = ("train", "nayer", "--preset", "digits", "--no-train-teacher", "--data", "digits", "--device", "cpu")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--run-dir", ""], '--run-dir "": expected a path'),
        (["--run-dir="], '--run-dir "": expected a path'),
        (["--data", ""], '--data "": expected text'),
        (["--resume="], '--resume "": expected text, or nothing at all'),
        (["--config", ""], '--config "": expected a path, or nothing at all'),
        (["--run-dir", "a\0b"], r"--run-dir a\x00b: holds a NUL"),
        (["--run-dir", os.fsdecode(b"x\xff")], r"--run-dir x\xff: is no UTF-8"),
        (["--run-dir", "n" * 260], f"--run-dir {'n' * 260}: file name too long"),
        (["--resume", "n" * 260], f"--resume {'n' * 260}: file name too long"),
        (["--resume", "a\0b"], r"--resume a\x00b: no run there"),
        (["--epochs", str(10**18)], f"--method.epochs {10**18}: choose 1000000 or less"),
        (["--teacher-recipe.epochs", str(10**18)], f"--teacher-recipe.epochs {10**18}: choose 1000000 or less"),
        (["--synthesis-batch-size", str(10**12)], f"--method.synthesis-batch-size {10**12}: choose 1000000000 or less"),
        (["--seed", str(2**70)], f"--seed {2**70}: choose {2**63 - 1} or less"),
    ],
)
def test_what_no_run_can_be_made_of_is_one_line(
    flags: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*NAYER, *flags]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith(f"dfkd-fast: {line}")
    assert captured.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def fail_in(folder: Path, meanwhile: Path | None) -> None:
    with taken_back_on_failure(folder):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.toml").write_text("x")
        if meanwhile is not None:
            meanwhile.write_text("mine, too")
        raise RuntimeError


def test_a_start_that_fails_takes_back_what_it_made_and_no_more(tmp_path: Path) -> None:
    """What was there stays, and so does what others put there meanwhile."""
    kept = tmp_path / "there" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    later = kept.with_name("log.txt")
    for folder, meanwhile in ((tmp_path / "there", later), (tmp_path / "new" / "run", None)):
        with pytest.raises(RuntimeError):
            fail_in(folder, meanwhile)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [later, kept]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_where_the_config_is_the_code_of_own_networks_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two files leaves no run, rather than one that cannot be taken up."""
    network, run = tmp_path / "net.py", tmp_path / "run"
    network.write_text("class Net: ...\n")
    seen: list[bool] = []
    monkeypatch.setattr(run_folder, "write_config", lambda config, file: seen.append((run / SOURCES_FILE).exists()))
    claim_folder(run, replace(default_config("nayer"), student=f"{network}:Net"))
    assert seen == [True]


def test_a_rank_that_has_outlived_a_run_of_more_is_in_the_way(tmp_path: Path) -> None:
    """Its checkpoints would be deleted under it. A rank of this run's own number has its own start to stop it."""
    handle = lock_file(tmp_path / "lock-1", "x", "y")
    line = rf"--run-dir {tmp_path / 'lock-1'}: process {os.getpid()} on .* is writing this run"
    with pytest.raises(UserError, match=line), locked_folder(tmp_path, rank=0, resume=False):
        pytest.fail("it was locked")
    with locked_folder(tmp_path, rank=0, resume=False, world_size=2):
        pass
    os.close(handle)
    with locked_folder(tmp_path, rank=0, resume=False):
        pass


@pytest.mark.parametrize("kind", ["checkpoints", "pool", "start", "training"])
def test_a_folder_that_is_dropped_halfway_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """What a kill, or a disk that refuses, leaves of it has another name; and the refusal is said."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def training() -> None:
        model = torch.nn.Linear(1, 1)
        kept = (model, torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", enabled=False))
        state = TrainingState(tmp_path, {}, flag="x", go_on="y")
        for epoch in range(2):
            state.save(epoch, *kept)
        (tmp_path / "00001-2-training" / "state.json").write_text("")
        state.take_up(*kept, print)

    def start() -> None:
        with taken_back_on_failure(tmp_path):
            (tmp_path / "checkpoints").mkdir()
            raise OSError(errno.EIO, "as it was")

    drops: dict[str, tuple[str, Callable[[], None]]] = {
        "checkpoints": ("checkpoints/rank-0-of-2", lambda: drop_other_checkpoints(tmp_path, 1)),
        "pool": ("rank-0-of-2", lambda: drop_other_shards(tmp_path, 1)),
        "start": ("checkpoints", start),
        "training": ("00001-2-training", training),
    }
    name, drop = drops[kind]
    if kind in ("checkpoints", "pool"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(OSError, match="as it was" if kind == "start" else "Input/output"):
        drop()
    assert not (tmp_path / name).exists()
    assert kind != "start" or "checkpoints could not be taken back (Input/output error)" in capsys.readouterr().out


@pytest.mark.parametrize("call", ["open", "pwrite"])
def test_a_disk_without_room_for_the_lock_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Nor a lock that this process still holds."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "runs" / "run"
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(UserError, match="No space left"), locked_folder(folder, rank=0, resume=False):
            pytest.fail("it was locked")
    assert list(tmp_path.iterdir()) == []
    with locked_folder(folder, rank=0, resume=False):
        assert (folder / "lock").read_text().startswith(f"{os.getpid()} on ")


def test_a_checkout_is_asked_for_its_commit_and_runs_no_program_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "dfkd_fast"
    package.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    monitor = tmp_path / "monitor.sh"
    monitor.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    monitor.chmod(0o755)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "pyproject.toml"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    subprocess.run([*git, "config", "core.fsmonitor", str(monitor)], check=True)
    hook = tmp_path / ".git/hooks/post-index-change"
    hook.write_text(monitor.read_text())
    hook.chmod(0o755)
    monkeypatch.setattr(dfkd_fast, "__file__", str(package / "__init__.py"))
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "ran").unlink(missing_ok=True)
    assert (run_record.git_sha() or "").startswith(head)
    (tmp_path / "pyproject.toml").write_text("other")
    assert run_record.git_sha() == f"{head}+"
    assert not (tmp_path / "ran").exists()


def test_a_repository_around_the_installed_package_is_not_its_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / ".venv/lib/site-packages/dfkd_fast"
    installed.mkdir(parents=True)
    monkeypatch.setattr(dfkd_fast, "__file__", str(installed / "__init__.py"))
    assert run_record.git_sha() is None
