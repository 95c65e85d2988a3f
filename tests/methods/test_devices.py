"""`--devices N`: one command, several processes, one voice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import tiny, write_teacher

from dfkd_fast.cli.devices import _killed, count_devices
from dfkd_fast.config.record import write_config
from dfkd_fast.errors import UserError

EVEN = {"synthesis_batch_size": 24, "batch_size": 20, "epochs": 1000}


@pytest.mark.parametrize(
    ("asked", "device", "message"),
    [
        ("0", "cpu", r"^--devices 0: choose a number of 1 or more, or auto$"),
        ("two", "cpu", r"^--devices two: choose a number of 1 or more, or auto$"),
        ("2", "cuda:1", r"^--devices 2: --device cuda:1 is one GPU; choose --device cuda$"),
        ("3", "auto", r"^--devices 3: this machine has 2 GPUs; choose up to 2, or --device cpu$"),
    ],
)
def test_mistakes(asked: str, device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=message):
        count_devices(asked, device)


def test_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [count_devices(asked, "cpu") for asked in ("1", "3", "auto")] == [1, 3, 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [count_devices(asked, "auto") for asked in ("1", "3", "auto")] == [1, 3, 4]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(UserError, match="torchrun has started these processes already"):
        count_devices("2", "cpu")


def test_the_first_to_be_killed_is_named() -> None:
    """Though the agent kills a rank that does not stop in time, and stops others."""
    ends = {0: (-signal.SIGKILL, 160), 1: (-signal.SIGKILL, 100), 2: (-signal.SIGTERM, 100), 3: (1, 99)}
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=at) for rank, (code, at) in ends.items()}
    assert _killed(failures) == [(1, signal.SIGKILL), (0, signal.SIGKILL), (2, signal.SIGTERM)]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run that takes minutes, of two processes."""
    folder = tmp_path_factory.mktemp("devices")
    config = replace(tiny("fast", write_teacher(folder / "teacher.safetensors"), folder / "run"), run_dir=None)
    write_config(replace(config, method=replace(config.method, **EVEN)), folder / "fast.toml")
    return ["fast", "--config", str(folder / "fast.toml"), "--run-dir", str(folder / "run"), "--devices", "2"]


def test_a_mistake_is_said_once(command: list[str]) -> None:
    status, _, errors = started([*command, "--batch-size", "21"], None)
    assert errors == "dfkd-fast: --method.batch-size 21: choose a multiple of 2, the number of processes\n"
    assert status == 2


def test_a_lost_rank_then_a_signal(command: list[str]) -> None:
    """A killed process ends the run at once, with one line; it goes on, and is stopped with one line, too."""
    run = Path(command[4])
    status, _, errors = started(command, lambda _, ranks: os.kill(ranks[1], signal.SIGKILL), run)
    words = "process 1 of 2 was ended by SIGKILL, which is what happens when memory runs out; the last phase boundary"
    assert errors == f"dfkd-fast: {words} is on disk, to go on: dfkd-fast train --resume {run}\n"
    assert status == 128 + signal.SIGKILL

    resume = ["--resume", str(run), "--devices", "2"]
    status, printed, errors = started(resume, lambda launcher, _: launcher.terminate(), run)
    assert "resumed after" in printed
    assert errors == f"dfkd-fast: stopped by SIGTERM; to go on: dfkd-fast train --resume {run}\n"
    assert status == 128 + signal.SIGTERM


def test_dry_run_speaks_once(command: list[str]) -> None:
    status, printed, errors = started([*command, "--dry-run"], None)
    assert (status, errors) == (0, "")
    assert printed.count("dry run: fast, cnn -> cnn_s, 32 px, 10 classes, 2 x CPU") == 1
    assert printed.count("in all") == 1


Act = Callable[["subprocess.Popen[str]", list[int]], None]


def started(arguments: list[str], act: Act | None, run: Path | None = None) -> tuple[int, str, str]:
    """Run `dfkd-fast train`, act on it and its ranks once they have passed a boundary; status, stdout and stderr."""
    command = [sys.executable, "-m", "dfkd_fast", "train", *arguments]
    before = boundaries(run)
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while act is not None and boundaries(run) == before and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if act is not None:
        act(launcher, ranks_of(launcher.pid))
    printed, errors = launcher.communicate(timeout=120)
    return launcher.returncode, printed, errors


def boundaries(run: Path | None) -> list[str]:
    """The newest checkpoints of the second rank."""
    return sorted(path.name for path in run.glob("checkpoints/rank-1-of-2/0*")) if run else []


def ranks_of(launcher: int) -> list[int]:
    """Its processes, by rank."""
    found = []
    for children in Path(f"/proc/{launcher}/task").glob("*/children"):
        found += [int(pid) for pid in children.read_text().split()]
    ranks = {}
    for pid in found:
        words = Path(f"/proc/{pid}/environ").read_text().split("\0")
        ranks |= {int(word.removeprefix("RANK=")): pid for word in words if word.startswith("RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]
