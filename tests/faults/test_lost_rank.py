"""A rank that is killed, in whichever phase, ends the run within a stated time, with its name and how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cases import Case

SECONDS = 120
"""in which all processes have ended; most of it is their start on two cores"""
PHASES = {
    "teacher training": "dfkd_fast.training.teachers.train _Trainer.step",
    "setup": "dfkd_fast.training.run Run.execute",
    "synthesis": "dfkd_fast.training.inner InnerLoop.run",
    "distillation": "dfkd_fast.training.student StudentTrainer.epoch",
    "evaluation": "dfkd_fast.training.run Run.evaluate_student",
    "checkpoint": "dfkd_fast.training.run Run.save",
}


@pytest.mark.nightly
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_rank_is_named(cases: dict[str, Case], tmp_path: Path, phase: str, rank: int) -> None:
    arguments = [*cases["pool"].start, "--devices", "2"]
    if phase == "teacher training":
        if rank == 1:
            pytest.skip("one rank trains the teacher, the other waits")
        chosen = arguments.index("--teacher-weights")
        del arguments[chosen : chosen + 2]
        arguments[arguments.index("--no-train-teacher")] = "--train-teacher"
        arguments += ["--data", "digits", "--image-size", "8", "--teacher-recipe.epochs", "2"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "LOST_RANK": f"{rank} {PHASES[phase]}",
        "OMP_NUM_THREADS": "1",
        "DFKD_FAST_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "dfkd_fast", *arguments]
    start = time.monotonic()
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS * 4, check=False
    )
    words = f"dfkd-fast: process {rank} of 2 was ended by SIGKILL, which is what happens when memory runs out"
    assert ended.returncode == 128 + signal.SIGKILL, ended.stderr
    assert ended.stderr.startswith(words)
    assert len(ended.stderr.splitlines()) == 1
    assert ("train --resume" in ended.stderr) == (tmp_path / "run" / "config.toml").exists()
    assert time.monotonic() - start < SECONDS
