"""One JSON line for each figure, appended to bench/results/pool-<part>.jsonl, and a table of them."""

from __future__ import annotations

import datetime
import json
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(kw_only=True)
class Figure:
    """A measured number and the bound it should keep."""

    name: str
    value: float
    unit: str
    bound: float | None = None
    sense: Literal["at least", "at most"] = "at least"
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the bound is kept; None without one."""
        if self.bound is None:
            return None
        return self.value >= self.bound if self.sense == "at least" else self.value <= self.bound

    def line(self) -> str:
        """The table's line."""
        mark = {True: "met", False: "MISSED", None: ""}[self.met]
        bound = "" if self.bound is None else f"{self.sense} {self.bound:,g}"
        return f"{self.name:<58} {self.value:>12,.4g} {self.unit:<16} {bound:<20} {mark}"


def append(part: str, figures: Iterable[Figure], folder: Path = RESULTS) -> None:
    """Append figures to the part's file, with the machine they come from, and print them."""
    folder.mkdir(parents=True, exist_ok=True)
    where = machine()
    with (folder / f"pool-{part}.jsonl").open("a", encoding="utf-8") as file:
        for figure in figures:
            file.write(json.dumps({**asdict(figure), "met": figure.met, **where}) + "\n")
            print(figure.line(), flush=True)


def machine() -> dict[str, Any]:
    """Where and with what the figures were measured."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return {
        "processor": names[0] if names else platform.processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted": bool(
            _git("status", "--porcelain", "--untracked-files=no", "--", "dfkd_fast", "kernels", "csrc")
        ),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(RESULTS.parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
