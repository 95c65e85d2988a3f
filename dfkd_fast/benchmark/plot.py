"""Hours by method as a picture: floor, ours, baseline, published."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from dfkd_fast.errors import UserError
from dfkd_fast.files.write import write_file

BARS = (
    ("arithmetic floor", "#9a9a9a", lambda row: row["ours"]["floor_hours"]),
    ("ours", "#1b7f5c", lambda row: row["ours"]["hours"]),
    ("baseline (released style)", "#c98a1b", lambda row: row["baseline_hours"]),
    ("published", "#8f3b3b", lambda row: row["published_hours"]),
)


def plot(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw one group of bars for each preset, on a logarithmic axis. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('bench methods --plot: needs matplotlib; pip install "dfkd-fast[bench]"') from None
    figure = Figure(figsize=(8, 1.2 + 0.8 * len(records)), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, colour, hours) in enumerate(BARS):
        places = [index + 0.2 * (number - 1.5) for index in range(len(records))]
        values = [hours(row) or 0 for row in records]
        axes.barh(places, values, height=0.18, color=colour, label=label)
    axes.set_yticks(range(len(records)), [f"{row['method']}/{row['preset']}" for row in records])
    axes.invert_yaxis()
    axes.set_xscale("log")
    unit, device = records[0]["unit"], records[0]["device"]
    axes.set_xlabel(f"{unit} on {device} (published: GPU-hours on its own card)")
    figure.legend(loc="outside upper center", ncols=len(BARS), fontsize="small")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_file(file, content.getvalue())
