"""Flags and result rows that the steps of `bench/gpu_check.py` share; each row is written as soon as it is measured."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOT_RUN = "not run"
"""the result of a row that this machine cannot give, with a reason"""


@dataclass
class StepReport:
    """Rows of one step: appended to <OUT_DIR>/rows.jsonl one by one, and printed."""

    step: str
    rehearse: bool
    folder: Path
    done: frozenset[str] = frozenset()
    """rows that need not be had again: a step that was cut goes on behind them"""
    failed: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        """What the step computes on; without a card it is rehearsed on the CPU."""
        return "cpu" if self.rehearse else "cuda"

    def row(self, name: str, *, ok: bool = True, **figures: Any) -> None:
        """Record a result; one that is not ok makes the step fail at its end."""
        record = {"step": self.step, "row": name, "result": "ok" if ok else "FAILED", **figures}
        self._write(record)
        if not ok:
            self.failed.append(name)

    def not_run(self, name: str, reason: str) -> None:
        """Record what cannot be had here."""
        self._write({"step": self.step, "row": name, "result": NOT_RUN, "reason": reason})

    def status(self) -> int:
        """The step's exit status; its last line says what failed."""
        print(f"{len(self.failed)} failed: {', '.join(self.failed)}" if self.failed else "all ok", flush=True)
        return int(bool(self.failed))

    def _write(self, record: dict[str, Any]) -> None:
        record["at_seconds"] = round(time.monotonic() - self.start, 1)
        append_record(self.folder / "rows.jsonl", record)
        print(line_of(record), flush=True)


def line_of(record: dict[str, Any]) -> str:
    """A row as the table shows it."""
    figures = {key: value for key, value in record.items() if key not in ("step", "row", "result", "at_seconds")}
    told = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
    )
    return f"{record['step']}: {record['row']}: {record['result']}{': ' if told else ''}{told}"


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append a line of JSON, on a line of its own even where a writer was cut within its last."""
    with path.open("ab+") as file:
        torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(record).encode() + b"\n")


def records_of(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines, without lines that a cut left torn; none if it was not written."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict)]


def open_report(step: str, doc: str | None) -> StepReport:
    """Read the command line that every step has, `[--rehearse] [--resume]`; OUT_DIR is the folder."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--resume", action="store_true", help="leave out rows of OUT_DIR that are ok")
    options = parser.parse_args()
    folder = Path(os.environ.get("OUT_DIR") or "build/gpu-check").resolve()  # a step may change its folder
    folder.mkdir(parents=True, exist_ok=True)
    known = records_of(folder / "rows.jsonl") if options.resume else []
    last = {row["row"]: row["result"] for row in known if row["step"] == step}
    return StepReport(step, options.rehearse, folder, frozenset(name for name, found in last.items() if found == "ok"))
