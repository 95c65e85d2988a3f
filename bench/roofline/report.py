"""Tables of predictions in docs/performance.md, from the lines in bench/results: `python bench/roofline/report.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCH / "methods"))

from table import write_between  # noqa: E402

DOC = BENCH.parent / "docs" / "performance.md"
RESULTS = BENCH / "results"
CARD = "a100-80gb"
CLOSE = 0.2
Row = dict[str, Any]


def lines(name: str) -> list[Row]:
    """The lines of a file of results; the last of each cell stands."""
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def checked() -> str:
    """Predicted and measured steps of this CPU."""
    rows = {(row["cell"], row["step"]): row for row in lines("roofline-cpu.jsonl") if "cell" in row}
    cells = dict.fromkeys(cell for cell, _ in rows)
    far = [row for row in rows.values() if abs(row["ratio"] - 1) > CLOSE]
    return "\n".join(
        [
            f"{len(rows) - len(far)} of {len(rows)} kinds of step are within a fifth.",
            "",
            "| steps | synthesis: predicted / measured ms (ratio) | student |",
            "|---|---|---|",
            *(_cell_row(cell, [row for key, row in rows.items() if key[0] == cell]) for cell in cells),
        ]
    )


def _cell_row(cell: str, rows: list[Row]) -> str:
    def told(row: Row) -> str:
        mark = "**" if abs(row["ratio"] - 1) > CLOSE else ""
        times = f"{1e3 * row['predicted_seconds']:.0f} / {1e3 * row['measured_seconds']:.0f}"
        return f"{times} ({mark}{row['ratio']:.2f}{mark})"

    synthesis = ", ".join(told(row) for row in rows if row["step"] != "student")
    return f"| {cell} | {synthesis} | {', '.join(told(row) for row in rows if row['step'] == 'student')} |"


def published() -> str:
    """The released codes' style on the cards that papers name."""
    keys = ("preset", "teacher", "student", "flags", "hours")
    rows = {tuple(row[key] for key in keys): row for row in lines("roofline-published.jsonl")}
    return "\n".join(
        [
            "| recipe | networks | card | published hours | predicted, released style | ratio | predicted, ours |",
            "|---|---|---|---|---|---|---|",
            *(_published_row(row) for row in rows.values()),
        ]
    )


def _published_row(row: Row) -> str:
    ours = "" if row["ours_predicted_hours"] is None else f"{row['ours_predicted_hours']:.2f}"
    networks = f"{row['teacher']} to {row['student']}".replace("@IMAGENET1K_V2", "")
    recipe = f"{row['preset']} {row['flags']}".strip()
    hours = f"{row['published_hours']:g} | {row['predicted_hours']:.2f} | {row['ratio']:.2f} | {ours}"
    return f"| {recipe} | {networks} | {row['card']} | {hours} |"


def spent() -> str:
    """Where the hours of recipes would go on an A100."""
    rows = {f"{row['method']}/{row['preset']}": row for row in lines(f"predicted-{CARD}.jsonl")}
    names = list(rows)
    head = f"| predicted hours on one {next(iter(rows.values()))['device']}, bf16 | {' | '.join(names)} |"
    return "\n".join([head, "|---|" + "---|" * len(names), *_spent_rows(list(rows.values()))])


def _spent_rows(rows: list[Row]) -> Iterator[str]:
    for phase in ("synthesis", "distillation"):
        hours = [row["ours"][phase]["seconds"] / 3600 for row in rows]
        mfu = [row["ours"][phase]["mfu"] for row in rows]
        cells = (f"{each:.2f} (MFU {100 * share:.0f} %)" for each, share in zip(hours, mfu, strict=True))
        yield f"| **{phase}** | {' | '.join(cells)} |"
        for group in rows[0]["ours"]["shares"][phase]:
            parts = [row["ours"]["shares"][phase][group] * each for row, each in zip(rows, hours, strict=True)]
            if any(part > 0.005 for part in parts):
                yield f"| {group} | {' | '.join(f'{part:.2f}' for part in parts)} |"
    for name, key in (
        ("in all", "hours"),
        ("arithmetic floor", "floor_hours"),
        ("at the card's peak rates", "hours_least"),
    ):
        cells = (f"{row['ours'][key]:.2f}" for row in rows)
        yield f"| **{name}** | {' | '.join(cells)} |"
    published = ("" if row["published_hours"] is None else f"{row['published_hours']:g}" for row in rows)
    yield f"| published, on the source's card | {' | '.join(published)} |"


def main() -> None:
    """Write all three."""
    for mark, text in (("roofline", checked()), ("published hours", published()), ("predicted hours", spent())):
        write_between(DOC, mark, text)


if __name__ == "__main__":
    main()
