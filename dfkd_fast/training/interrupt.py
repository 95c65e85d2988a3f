"""Ctrl-C and SIGTERM: finish the current step, drop the partial phase, say how to go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dfkd_fast.errors import LostRank
from dfkd_fast.messages.terminal import command


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """A run was asked to stop. What its last checkpoint holds is whole; the phase under way is discarded."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.run_dir: Path | None = None
        """where to resume from; None when nothing was written yet"""
        self.note: str | None = None
        """what is kept where there is no run folder yet"""


class StopSignals:
    """Remembers a signal until the loop asks: a step is never cut in half."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def check(self) -> None:
        """Raise Interrupted when a signal has come. Called between steps."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:  # the second time the user means it
            raise KeyboardInterrupt
        self.signum = signum


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Catch SIGINT and SIGTERM while the block runs; what was there before comes back after it. Main thread only."""
    signals = StopSignals()
    before = {signum: signal.signal(signum, signals._remember) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def resumable(folder: Path, signals: StopSignals) -> Iterator[None]:
    """Say, when the block is stopped or another process is lost, that the run in `folder` can go on from there."""
    try:
        yield
    except Interrupted as stop:
        stop.run_dir = folder
        raise
    except LostRank as lost:
        if signals.signum is None:
            raise LostRank(f"{lost}; to go on: {command('train', '--resume', folder)}") from lost
        stopped = Interrupted(signals.signum)  # all had the same signal, and another one was faster
        stopped.run_dir = folder
        raise stopped from lost
