"""The one line that a command ends with when it does not end well: on stderr, or left for the launcher of several
processes, which says it once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

from dfkd_fast.files.write import write_file
from dfkd_fast.messages.terminal import show

REPORTS = "DFKD_FAST_REPORTS"
"""environment variable with the folder in which a launched process leaves its line"""

Kind = Literal["mistake", "stopped", "lost"]


def report_exit(text: str, *, kind: Kind = "mistake", status: int = 2) -> int:
    """Report how the command ends; returns its exit status."""
    folder = os.environ.get(REPORTS)
    if folder is None:
        show(f"dfkd-fast: {text}", file=sys.stderr)
    else:
        report = {"text": text, "kind": kind, "status": status, "time": time.time()}
        write_file(Path(folder) / f"{os.environ.get('RANK', 0)}.json", json.dumps(report))
    return status


def collect_reports(folder: Path) -> list[dict[str, Any]]:
    """What the processes have left in a folder, the earliest first."""
    return sorted((json.loads(file.read_text()) for file in folder.glob("*.json")), key=lambda report: report["time"])
