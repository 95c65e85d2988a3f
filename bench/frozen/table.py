"""The comparison's table, from its lines, and what falls short of what was asked for."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MEDIAN, WORST = 1.10, 1.25
"""of ours / the network without the loss"""

Key = tuple[str, str]
Line = Mapping[str, Any]


def read(path: Path) -> dict[Key, Line]:
    """The last line of each network and dtype; a line that a cut left torn is none."""
    lines: dict[Key, Line] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        lines[line["network"], line["dtype"]] = line
    return lines


def best_baseline(line: Line) -> float:
    """The best baseline's time over ours."""
    return min(value for name, value in line["ratios"].items() if name in ("hooks / ours", "compiled / ours"))


def markdown(lines: Iterable[Line]) -> str:
    """A row for each network and dtype."""
    rows = [
        "| network | BatchNorms | | hooks / ours | compiled / ours | ours / without the loss |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        ratios = line["ratios"]
        compiled = f"{ratios['compiled / ours']:.2f}" if "compiled / ours" in ratios else "not compiled"
        hooks, cost = f"{ratios['hooks / ours']:.2f}", f"{ratios['ours / without']:.2f}"
        rows.append(f"| {line['network']} | {line['batchnorms']} | {line['dtype']} | {hooks} | {compiled} | {cost} |")
    return "\n".join(rows)


def shortfalls(lines: Iterable[Line]) -> list[str]:
    """What was asked for and is not there, a line each."""
    found = []
    by_dtype: dict[str, list[float]] = {}
    for line in lines:
        name, cost = f"{line['network']} {line['dtype']}", line["ratios"]["ours / without"]
        by_dtype.setdefault(line["dtype"], []).append(cost)
        if best_baseline(line) < 1:
            found.append(f"{name}: {best_baseline(line):.2f} of the best baseline's time / ours, asked for 1")
        if cost > WORST:
            found.append(f"{name}: {cost:.2f} times the network without the loss, asked for at most {WORST}")
    for dtype, costs in by_dtype.items():
        middle = statistics.median(costs)
        if middle > MEDIAN:
            found.append(f"median of {len(costs)}, {dtype}: {middle:.2f} times without the loss, asked for {MEDIAN}")
    return found


def summary(lines: Iterable[Line]) -> list[str]:
    """How many are as fast as the best baseline, and what the loss costs, by dtype."""
    by_dtype: dict[str, list[Line]] = {}
    for line in lines:
        by_dtype.setdefault(line["dtype"], []).append(line)
    texts = []
    for dtype, rows in by_dtype.items():
        costs = [row["ratios"]["ours / without"] for row in rows]
        compiled = sum("compiled / ours" in row["ratios"] for row in rows)
        fast = sum(best_baseline(row) >= 1 for row in rows)
        texts.append(
            f"{dtype}: {len(rows)} networks, {compiled} of them compiled; {fast} as fast as the best baseline; "
            f"ours / without the loss {statistics.median(costs):.2f} in the median, {max(costs):.2f} at worst"
        )
    return texts
