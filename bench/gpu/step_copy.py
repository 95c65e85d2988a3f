"""A step's command in a copy of this process, in which torch is imported already: for rehearsals. Half of their time on
a CPU was eleven imports of it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import IO


class StepCopy:
    """Like a subprocess.Popen of `[python, FILE | -m MODULE, *arguments]`, as far as a step is waited for and ended."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], log: IO[str]) -> None:
        self.command = command
        work = (command[1:], folder, environment, log)
        self._process = multiprocessing.get_context("fork").Process(target=_execute, args=work)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.command, timeout or 0.0)
        return self._process.exitcode


def preload(environment: dict[str, str], paths: list[str]) -> None:
    """Import here what every step would: with their environment, which is read in doing so."""
    os.environ.update(environment)
    sys.path[1:1] = paths
    import torch

    torch.set_num_threads(1)  # a thread pool does not survive copying
    # the tests choose Triton's interpreter, which has to be before it is imported
    assert "triton" not in sys.modules


def _execute(words: list[str], folder: Path, environment: dict[str, str], log: IO[str]) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], str(folder)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str((folder / words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")
