"""The curve of a speedrun, what is read off it, and the table in docs/speedrun.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from entry import Entry

from dfkd_fast.reporting.loggers import METRICS_FILE, read_metrics

TARGETS = (70, 80, 85)
"""percent of the real test images"""

Curve = list[tuple[float, float]]


def curve_of(folder: Path) -> Curve:
    """Core-seconds and top-1 in [0, 1] of every evaluation so far, in order."""
    file = folder / METRICS_FILE
    lines = read_metrics(file) if file.exists() else []
    return [(line["core_seconds"], line["top1"]) for line in lines if line["phase"] == "evaluation"]


def reached(curve: Curve) -> dict[str, float | None]:
    """Target in percent -> core-seconds of the first evaluation that has it; None where none does."""
    return {str(target): next((seconds for seconds, top1 in curve if 100 * top1 >= target), None) for target in TARGETS}


def table(entries: Sequence[Entry], lines: Sequence[dict[str, Any]], minutes: float) -> str:
    """A row for each entry, from its runs of so many minutes: medians, and the lowest and highest."""
    heads = [f"{target} %: core-seconds" for target in TARGETS]
    rows = ["| entry | seeds | " + " | ".join(heads) + " | last top-1 | search |", "|---" * (len(TARGETS) + 4) + "|"]
    for entry in entries:
        runs = [line for line in lines if line["entry"] == entry.name and line["minutes"] == minutes]
        seconds = [_cell([run["reached"][str(target)] for run in runs]) for target in TARGETS]
        last = _spread([100 * run["last"] for run in runs if run["last"] is not None], ".2f")
        rows.append(
            f"| {entry.title} | {len(runs)} of {entry.seeds} | {' | '.join(seconds)} | {last} | {entry.search} |"
        )
    return "\n".join(rows)


def _cell(found: Sequence[float | None]) -> str:
    there = [value for value in found if value is not None]
    if len(there) == len(found):
        return _spread(there, ",.0f")
    return f"{len(there)} of {len(found)} runs" + (f" ({_spread(there, ',.0f')})" if there else "")


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "not measured"
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def write_table(page: Path, text: str) -> None:
    """Put the table between the page's marks."""
    before = page.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- speedrun -->\n).*?(<!-- /speedrun -->)", re.DOTALL)
    page.write_text(marked.sub(lambda found: f"{found[1]}{text}\n{found[2]}", before), encoding="utf-8")
