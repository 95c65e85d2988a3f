"""The expected line of an axis, and whether the last point keeps to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from axes import Axis

PHASES = ("synthesis", "student")
Line = dict[str, Any]


def expected(axis: Axis, lines: Sequence[Line], phase: str) -> list[float]:
    """Seconds of each line's step if they grew with the work from the axis' anchor on."""
    seconds = [line["seconds"][phase] for line in lines]
    first = seconds[axis.anchor]
    if axis.constant:
        return [first] * len(lines)
    if axis.linear:
        values = [line["value"] for line in lines]
        slope = (seconds[axis.anchor + 1] - first) / (values[axis.anchor + 1] - values[axis.anchor])
        return [first + max(slope, 0.0) * (value - values[axis.anchor]) for value in values]
    work = [line["flops"][phase] for line in lines]
    return [first * each / work[axis.anchor] for each in work]


def verdicts(name: str, axis: Axis, lines: Sequence[Line]) -> list[str]:
    """A printed line for each phase; empty while points are missing."""
    if len(lines) < len(axis.points):
        return []
    found = []
    for phase in PHASES:
        ratio = lines[-1]["seconds"][phase] / expected(axis, lines, phase)[-1]
        kept = "met" if ratio <= axis.most else "MISSED"
        words = f"{ratio:5.2f} of what is expected at {lines[-1]['value']:,} (at most {axis.most:g}: {kept})"
        found.append(f"{name:18} {phase:10} {words}")
    return found
