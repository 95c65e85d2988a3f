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
    """A row for each network, fp32 and bf16 beside each other; "-" is not measured."""
    by_network: dict[str, dict[str, Line]] = {}
    for line in lines:
        by_network.setdefault(line["network"], {})[line["dtype"]] = line
    dtypes = ("fp32", "bf16")
    ratios = ("hooks / ours", "compiled / ours", "ours / without")
    rows = [
        f"| network | BatchNorms | {' | '.join(f'{ratio}, {dtype}' for ratio in ratios for dtype in dtypes)} |",
        "|---" * (2 + len(ratios) * len(dtypes)) + "|",
    ]
    for network, found in by_network.items():
        count = next(iter(found.values()))["batchnorms"]
        cells = [_cell(found.get(dtype), ratio) for ratio in ratios for dtype in dtypes]
        rows.append(f"| {network} | {count} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(line: Line | None, ratio: str) -> str:
    return f"{line['ratios'][ratio]:.2f}" if line and ratio in line["ratios"] else "-"


BEGIN, END = "<!-- frozen networks: bench/frozen/run.py --docs writes this -->", "<!-- end of frozen networks -->"


def document(page: str, lines: list[Line]) -> str:
    """The page with table, summary and shortfalls of these lines between its two marks."""
    head, _, rest = page.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    assert mark, "the page lacks its marks"
    short = [f"- {text}" for text in shortfalls(lines)] or ["- nothing"]
    parts = [BEGIN, markdown(lines), "", *(f"- {text}" for text in summary(lines)), "", "What falls short:", "", *short]
    return head + "\n".join([*parts, END]) + tail


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
        compiled = [row for row in rows if "compiled / ours" in row["ratios"]]
        fast = sum(best_baseline(row) >= 1 for row in compiled)
        texts.append(
            f"{dtype}: {len(rows)} networks, {len(compiled)} of them compiled; of these ours is as fast as the best "
            f"baseline on {fast}; ours / without the loss {statistics.median(costs):.2f} in the median, "
            f"{max(costs):.2f} at worst"
        )
    return texts
