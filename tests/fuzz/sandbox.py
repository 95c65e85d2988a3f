"""One command in a forked child: its limits, what it says, what it leaves. torch is imported once, by the parent."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 20
WALL_SECONDS = 120  # of a machine that does other work as well
MEMORY = 2 << 30
"""bytes of address space beyond what the parent has"""
RESIDENT = 1 << 30
"""bytes of memory in use beyond what the parent has"""
FILE_SIZE = 1 << 28
LINES = 8
"""of messages"""
ROWS = 12
"""of the table that `teacher info` of a good file is asked for"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    """exit status; minus the signal that ended it"""
    output: str
    """standard output and standard error together"""
    resident: int
    """peak of memory in use, bytes, beyond the parent's"""
    is_table: bool = False
    """whether a table was asked for"""

    def faults(self) -> list[str]:
        """What no input may bring about."""
        found = []
        if self.status not in (0, 2):
            found.append(f"exit status {self.status}")
        if "Traceback" in self.output or "Error:" in self.output:
            found.append("a traceback")
        if self.output.count("\n") > (ROWS if self.is_table and not self.status else LINES):
            found.append(f"{self.output.count(chr(10))} lines")
        if any(character in self.output for character in "\x1b\x07\x9b"):
            found.append("control characters")
        if self.resident > RESIDENT:
            found.append(f"{self.resident / 1e6:.0f} MB")
        return found


def run(arguments: Sequence[str], folder: Path) -> Outcome:
    """Run `dfkd-fast ARGUMENTS` in `folder`, which is its home, its temporary and its working folder."""
    output = folder / "output.txt"
    resident = _status("VmRSS")
    child = os.fork()
    if child == 0:
        _child(arguments, folder, output)
    end, killed = time.monotonic() + WALL_SECONDS, False
    watch = os.pidfd_open(child)
    if not select.select([watch], [], [], end - time.monotonic())[0]:
        os.kill(child, signal.SIGKILL)
        killed = True
    os.close(watch)
    _, status, used = os.wait4(child, 0)
    text = output.read_text(errors="replace") if output.exists() else ""
    output.unlink(missing_ok=True)
    code = -signal.SIGALRM if killed else os.waitstatus_to_exitcode(status)
    is_table = list(arguments[:2]) == ["teacher", "info"]
    return Outcome(code, text, used.ru_maxrss * 1024 - resident, is_table)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder and the two above it, with its size and time, what a command may write left out."""
    found = {}
    for path in folder.parents[1].rglob("*"):
        name = os.path.relpath(path, folder)
        if name.partition("/")[0] not in ("out", "output.txt"):
            there = path.lstat()
            found[name] = (there.st_size, 0 if path.is_dir() else there.st_mtime_ns)
    return found


def _child(arguments: Sequence[str], folder: Path, output: Path) -> None:
    """Never returns."""
    status = 1
    try:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number in (1, 2):
            os.dup2(handle, number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        os.environ |= {name: str(folder) for name in ("HOME", "TMPDIR", "DFKD_FAST_CACHE")}
        os.environ["PATH"] = str(folder / "programs")
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        most = _status("VmSize") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        from dfkd_fast.cli.main import main

        status = main(arguments)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _status(name: str) -> int:
    """A size in bytes of this process's /proc entry."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
