"""Progress of a run on the console: a live bar on a terminal, plain lines elsewhere, nothing on other ranks."""

from __future__ import annotations

import sys
import time
from typing import Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from dfkd_fast.messages.terminal import show, shown

ConsoleKind = Literal["auto", "rich", "plain", "off"]

_BAR_SECONDS = 0.1
_LINE_SECONDS = 30.0


class Console:
    """Shows nothing; the base of those that do.

    A phase is `begin`, any number of `advance` and `status`, and `end`. For `status` the caller has read the device.
    """

    def begin(self, title: str, total_steps: int) -> None:
        """A phase starts."""

    def advance(self, done_steps: int) -> None:
        """So many steps of the phase are done. Called at every step."""

    def status(self, text: str) -> None:
        """How the phase goes: loss terms, speed, time left."""

    def end(self) -> None:
        """The phase is over, or was broken off."""

    def print(self, text: str) -> None:
        """A line that stays."""


class PlainConsole(Console):
    """One line now and then: for logs, pipes and batch systems."""

    def begin(self, title: str, total_steps: int) -> None:
        self._title, self._total, self._done = title, total_steps, 0
        self._printed_at = time.monotonic()

    def advance(self, done_steps: int) -> None:
        self._done = done_steps

    def status(self, text: str) -> None:
        if time.monotonic() - self._printed_at >= _LINE_SECONDS:
            self.print(f"{self._title} {self._done}/{self._total} | {text}")
            self._printed_at = time.monotonic()

    def print(self, text: str) -> None:
        show(text)


class RichConsole(Console):
    """A bar for the phase under way; finished phases stay above it as plain lines."""

    def __init__(self) -> None:
        status = TextColumn("{task.fields[status]}", markup=False, table_column=Column(no_wrap=True, ratio=1))
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            status,
        )
        self._progress = Progress(*columns, transient=True)
        self._task: TaskID | None = None
        self._moved_at = 0.0

    def begin(self, title: str, total_steps: int) -> None:
        self._task = self._progress.add_task(shown(title), total=total_steps, status="")
        self._progress.start()

    def advance(self, done_steps: int) -> None:
        now = time.monotonic()
        if self._task is not None and now - self._moved_at >= _BAR_SECONDS:
            self._moved_at = now
            self._progress.update(self._task, completed=done_steps)

    def status(self, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, status=text)

    def end(self) -> None:
        self._progress.stop()  # wipes the bar; without a task it would leave an empty line
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def print(self, text: str) -> None:
        self._progress.console.print(shown(text), markup=False, highlight=False, soft_wrap=True)


def make_console(kind: ConsoleKind, *, is_main: bool) -> Console:
    """The console of this rank; `auto` is a bar where standard output is a terminal."""
    if not is_main or kind == "off":
        return Console()
    if kind == "rich" or (kind == "auto" and sys.stdout.isatty()):
        return RichConsole()
    return PlainConsole()


def duration(seconds: float) -> str:
    """`45s`, `12m30s`, `1h12m` or `3d04h`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24}d{hours % 24:02d}h" if hours >= 24 else f"{hours}h{minutes:02d}m"


def count(number: float) -> str:
    """`870`, `18.4k` or `1.2M`."""
    if number >= 1e6:
        return f"{number / 1e6:.1f}M"
    return f"{number / 1e3:.1f}k" if number >= 1e4 else f"{number:.0f}"
