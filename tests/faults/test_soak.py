"""A long run that is killed again and again ends as the one that was not, and neither memory nor files nor descriptors
grow on the way.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path
from statistics import median

import pytest
from cases import Case, outcome
from harness import BEFORE, Server, compare, fresh

CHANGES = 10
"""file operations of an epoch, about"""


@pytest.mark.parametrize(
    ("epochs", "between"),
    [(40, 12), pytest.param(10_000, 100, marks=[pytest.mark.nightly, pytest.mark.timeout(0)])],
)
def test_a_run_with_many_kills(
    server: Server, cases: dict[str, Case], tmp_path: Path, epochs: int, between: int
) -> None:
    """`between`: epochs from one kill to the next, about."""
    start = [*cases["stepwise"].start, "--epochs", str(epochs), "--student-steps", "1", "--log.images-per-class", "0"]
    case = Case("soak", start, cases["stepwise"].resume, "run/config.toml")
    whole, folder = fresh(tmp_path / "whole"), fresh(tmp_path / "killed")
    assert server.run(start, whole, limit=10**6).status == 0
    draw, memory, handles, files, kills = random.Random("soak"), [], [], [], 0
    while True:
        at = draw.randrange(CHANGES * between // 2, CHANGES * between * 3 // 2)
        ended = server.run(case.command(folder), folder, how=BEFORE, at=at, limit=10**6)
        memory.append(ended.memory)
        handles.append(ended.handles)
        if ended.status != -signal.SIGKILL:
            break
        files.append(sum(path.is_file() for path in folder.rglob("*")))
        kills += 1
    assert ended.status == 0, str(ended)
    assert kills >= epochs // between // 3
    assert compare(outcome(whole), outcome(folder)) == "same"
    third = max(1, len(memory) // 3)
    for values, room in ((memory, 1.05), (handles, 1.0), (files, 1.0)):
        assert median(values[-third:]) <= room * median(values[:third]) + 2, values
    assert max(files) <= min(files) + 8, files
    assert not list(folder.rglob("*.partial"))
