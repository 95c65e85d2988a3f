"""Runs with faults in them: the process that runs them, and what is said of how they end."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cases import Case, outcome
from disk import Crash, Disk, Kind, Operation, changes, read_journal

HERE = Path(__file__).parent
RECORD, BEFORE, AFTER, HALFWAY, FAIL, FAIL_READ = range(6)
ERRORS = {"ENOSPC": errno.ENOSPC, "EACCES": errno.EACCES, "EIO": errno.EIO}
CRASHES: dict[str, Crash] = {
    "kill": "kill",
    "power cut, unsynced names lost": "names lost",
    "power cut, unsynced data lost": "names kept",
    "power cut, unsynced data torn": "torn",
}


def build_shim(folder: Path) -> Path:
    """Compile the fault layer."""
    library = folder / "faults.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "shim.c"), "-ldl", "-lpthread"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return library


class Server:
    """The process that has torch imported and the fault layer preloaded; see server.py."""

    def __init__(self, shim: Path) -> None:
        environment = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(HERE / "server.py")]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def run(self, args: Sequence[str], folder: Path, **fault: Any) -> Ended:
        """Run a command line in `folder`; `fault`: what server.py knows."""
        output = folder.with_name(f"{folder.name}.out")
        output.unlink(missing_ok=True)
        request = {"args": [*args], "folder": str(folder), "output": str(output), **fault}
        if "how" in fault or "journal" in fault:
            request["root"] = str(folder)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        text = output.read_text(errors="replace")
        return Ended(answer["status"], text, answer["memory"], answer["handles"])

    def record(self, args: Sequence[str], folder: Path) -> list[Operation]:
        """Run a command line to its end and return its file operations."""
        journal = folder.with_name(f"{folder.name}.journal")
        ended = self.run(args, folder, journal=str(journal), how=RECORD)
        assert ended.status == 0, str(ended)
        return read_journal(journal, folder)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


class Ended:
    """How a command ended."""

    def __init__(self, status: int | None, text: str, memory: int, handles: int) -> None:
        self.status, self.text, self.memory, self.handles = status, text, memory, handles

    @property
    def refusal(self) -> str | None:
        """The one line of a command that could not do what was asked, None where it did, or ended in another way."""
        lines = [line for line in self.text.splitlines() if line.startswith("dfkd-fast: ")]
        return lines[0] if self.status == 2 and len(lines) == 1 and "Traceback" not in self.text else None

    def __str__(self) -> str:
        return f"status {self.status}: {self.text.strip()[-1500:]}"


@dataclass
class Recorded:
    """A case that was run to its end without faults."""

    case: Case
    start: Path
    """the folder as it was before"""
    operations: list[Operation]
    end: Path
    outcome: dict[str, Any]

    def trials(self) -> Iterator[Trial]:
        """Every fault at every operation."""
        done = changes(self.operations)
        for at in range(len(done) + 1):
            yield from (Trial(crash, at) for crash in CRASHES)
            if at < len(done) and done[at].kind is Kind.WRITE:
                yield Trial("halfway", at)
        yield from (Trial(error, at) for at in range(1, len(done) + 1) for error in ERRORS)
        reads = len(self.operations) - len(done)
        yield from (Trial(f"read {error}", at) for at in range(1, reads + 1) for error in ("EIO", "EACCES"))


class Trial(NamedTuple):
    """A fault, and the operation where it comes: a crash after so many, or the failure of this one (from 1)."""

    fault: str
    at: int

    def __str__(self) -> str:
        return f"{self.fault} at {self.at}"


def record(server: Server, case: Case, folder: Path) -> Recorded:
    """Run a case twice without faults, the first time for what Python imports by the way, and note what it does."""
    start = fresh(folder / "start")
    if case.before:
        assert server.run(case.before, start, here=True).status == 0
    warm, end = fresh(folder / "warm", start), fresh(folder / "end", start)
    assert server.run(case.command(warm), warm, here=True).status == 0
    operations = server.record(case.command(end), end)
    return Recorded(case, start, operations, end, outcome(end))


def attempt(server: Server, recorded: Recorded, trial: Trial, folder: Path, seed: int = 0) -> str:
    """Let a fault come, go on, and judge: `same`, `survived` (without going on), `refused: LINE`, or what is wrong."""
    if trial.fault in (*CRASHES, "halfway"):
        left_by(recorded, trial, folder, seed)
        return verdict(server, recorded.case, folder, recorded.outcome)
    fresh(folder, recorded.start)
    reads, error = trial.fault.startswith("read "), ERRORS[trial.fault.removeprefix("read ")]
    fault = {"how": FAIL_READ if reads else FAIL, "at": trial.at, "code": error}
    ended = server.run(recorded.case.command(folder), folder, **fault)
    if ended.status == 0:
        found = compare(recorded.outcome, without_left(outcome(folder), ended))
        return "survived" if found == "same" else found
    if ended.refusal is None:
        return f"WRONG {ended}"
    return verdict(server, recorded.case, folder, recorded.outcome)


def left_by(recorded: Recorded, trial: Trial, folder: Path, seed: int = 0) -> None:
    """Make the folder that a crash leaves."""
    shutil.rmtree(folder, ignore_errors=True)
    done = changes(recorded.operations)
    disk = Disk(recorded.start).play(done[: trial.at])
    if trial.fault == "halfway":
        disk.half(done[trial.at]).leave(folder)
    else:
        disk.leave(folder, CRASHES[trial.fault], seed * 1000 + trial.at)


def verdict(server: Server, case: Case, folder: Path, expected: dict[str, Any]) -> str:
    """Go on from what a fault has left and judge."""
    ended = server.run(case.command(folder), folder)
    if ended.refusal is not None:
        return f"refused: {ended.refusal}"
    return f"WRONG {ended}" if ended.status != 0 else compare(expected, outcome(folder))


def without_left(found: dict[str, Any], ended: Ended) -> dict[str, Any]:
    """An outcome without the checkpoints of a teacher's training that the command said it could not delete."""
    if re.search(r"^(dfkd-fast: )?\S*teacher\.training: could not be deleted", ended.text, re.MULTILINE) is None:
        return found
    return {name: value for name, value in found.items() if not name.startswith("teacher.training/")}


def compare(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """`same`, or which parts of an outcome differ."""
    odd = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    return f"WRONG: another {', '.join(sorted(odd))}" if odd else "same"


def fresh(folder: Path, start: Path | None = None) -> Path:
    """An empty folder, or a copy of another."""
    shutil.rmtree(folder, ignore_errors=True)
    if start is None:
        folder.mkdir(parents=True)
    else:
        shutil.copytree(start, folder)
    return folder
