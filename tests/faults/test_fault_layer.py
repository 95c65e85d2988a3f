"""The fault layer sees every change of every file: what it noted, played back, is the folder that the run left; and a
kill leaves what is played back up to it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import NAMES
from disk import Disk, changes, contents, read_journal
from harness import AFTER, HALFWAY, Recorded, Server, fresh


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_unseen(recorded: Callable[[str], Recorded], name: str, tmp_path: Path) -> None:
    """Whether Python writes, torch, or safetensors."""
    run = recorded(name)
    Disk(run.start).play(run.operations).leave(tmp_path / "played")
    assert contents(tmp_path / "played") == contents(run.end)
    assert len(changes(run.operations)) > 40


@pytest.mark.parametrize("how", [AFTER, HALFWAY])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_kill_leaves_what_is_played_back(
    server: Server, recorded: Callable[[str], Recorded], tmp_path: Path, how: int, part: float
) -> None:
    """Where there is no second thread the same operation comes at the same number in each run."""
    run = recorded("stepwise")
    folder, journal = fresh(tmp_path / "run"), tmp_path / "killed.journal"
    at = int(part * len(changes(run.operations)))
    ended = server.run(run.case.command(folder), folder, how=how, at=at, journal=str(journal))
    assert ended.status == -signal.SIGKILL
    done = read_journal(journal, folder)
    assert len(changes(done)) == at
    assert [each.kind for each in done] == [each.kind for each in run.operations[: len(done)]]
    Disk().play(done).leave(tmp_path / "played")
    assert contents(tmp_path / "played") == contents(folder)
