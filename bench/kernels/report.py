"""Rows of the kernel benchmarks: a JSON line appended to the results, and a line of the table printed at the end."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """`factor` times a ratio of two medians, `numerator` / `denominator`, and the bound it should keep."""

    numerator: str
    denominator: str
    bound: float
    sense: Literal["at least", "at most"] = "at least"
    factor: float = 1.0
    label: str = ""

    @property
    def name(self) -> str:
        """How tables call it."""
        return self.label or f"{self.numerator} / {self.denominator}"

    def is_met(self, value: float) -> bool:
        """Whether a measured ratio keeps the bound."""
        return value >= self.bound if self.sense == "at least" else value <= self.bound


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A bound on one variant's median, in microseconds."""

    variant: str
    microseconds: float


@dataclass(kw_only=True)
class Row:
    """One comparison: medians in seconds by variant, and what was asked of them."""

    name: str
    shape: Sequence[int]
    dtype: str
    goals: Sequence[Goal] = ()
    limits: Sequence[Limit] = ()
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    """further measured figures, such as bytes per second"""
    reason: str = ""
    """why it was not measured"""

    @property
    def medians(self) -> dict[str, float]:
        """Seconds by variant."""
        return {name: statistics.median(samples) for name, samples in self.seconds.items()}

    def ratio(self, goal: Goal) -> float:
        """Measured value of a goal."""
        return goal.factor * self.medians[goal.numerator] / self.medians[goal.denominator]

    def record(self) -> dict[str, Any]:
        """The JSON line, without the machine's part."""
        return {
            "row": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "rounds": len(next(iter(self.seconds.values()))),
            "medians_ms": {name: round(1e3 * value, 6) for name, value in self.medians.items()},
            "ratios": {
                goal.name: {
                    "value": round(self.ratio(goal), 4),
                    "goal": f"{goal.sense} {goal.bound:g}",
                    "met": goal.is_met(self.ratio(goal)),
                }
                for goal in self.goals
            },
            "limits_us": {
                limit.variant: {
                    "value": round(1e6 * self.medians[limit.variant], 3),
                    "goal": f"at most {limit.microseconds:g}",
                    "met": 1e6 * self.medians[limit.variant] <= limit.microseconds,
                }
                for limit in self.limits
            },
            "numbers": dict(self.numbers),
        }

    def lines(self) -> list[str]:
        """The table's lines: one per goal and limit, or one that says why there is none."""
        title = f"{self.name} {'x'.join(map(str, self.shape))} {self.dtype}"
        if self.reason:
            return [f"{title:<58} not measured: {self.reason}"]
        lines = []
        for goal in self.goals:
            value = self.ratio(goal)
            lines.append((goal.name, f"{value:8.2f}", f"{goal.sense} {goal.bound:g}", goal.is_met(value)))
        for limit in self.limits:
            value = 1e6 * self.medians[limit.variant]
            met = value <= limit.microseconds
            lines.append((f"{limit.variant}, us", f"{value:8.1f}", f"at most {limit.microseconds:g}", met))
        lines += [(name, f"{value:8.3g}", "", None) for name, value in self.numbers.items()]
        marks = {True: "met", False: "MISSED", None: ""}
        return [f"{title:<58} {name:<44} {value}  {goal:<14} {marks[met]}" for name, value, goal, met in lines]


def machine(device: torch.device) -> dict[str, Any]:
    """Where and with what the rows were measured."""
    return {
        "device": device_name(device),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "kernels", "csrc", "bench")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    """`cpu`, or the card's name as a file name can hold it."""
    if device.type == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def append(rows: Sequence[Row], device: torch.device, folder: Path, test: str) -> None:
    """Append the rows of a test to kernels-<device>.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    where = machine(device)
    with (folder / f"kernels-{device_name(device)}.jsonl").open("a") as file:
        for row in rows:
            file.write(json.dumps({**row.record(), "test": test, **where}) + "\n")


def measured(device: torch.device, folder: Path) -> set[str]:
    """The tests that have rows in kernels-<device>.jsonl; lines that a cut left torn are not rows."""
    path, found = folder / f"kernels-{device_name(device)}.jsonl", set()
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.add(json.loads(line).get("test", ""))
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*args: str) -> str:
    command = ["git", "-C", str(RESULTS.parent), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
