"""The Markdown tables of docs/results.md, from the lines of the results file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cells import Cell, Recipe

Line = dict[str, Any]

HEAD = (
    "| method | student top-1, last epoch: mean (lowest to highest) | teacher | gap, points | agreement | images "
    "| generator + student steps | synthesis + distillation |\n|---|---|---|---|---|---|---|---|"
)


def table(cells: Sequence[Cell], lines: Sequence[Line]) -> str:
    """A row for each method and variant of `cells`, in their order, over its seeds.

    A run counts if its recipe is the present one; of several, the newest. Where some are missing, the row says so.
    """
    rows: dict[tuple[str, str], list[Line | None]] = {}
    titles: dict[tuple[str, str], str] = {}
    known = newest(lines)
    for cell in cells:
        titles[cell.method, cell.variant] = cell.title
        rows.setdefault((cell.method, cell.variant), []).append(known.get(Recipe.of(cell).recipe_hash))
    used = [line for found in rows.values() for line in found if line]
    text = "\n".join([HEAD, *(_row(titles[key], found) for key, found in rows.items())])
    return f"{text}\n\n{origin(used)}" if used else text


def newest(lines: Sequence[Line]) -> dict[str, Line]:
    """The last line of each recipe, by its hash."""
    return {line["recipe_hash"]: line for line in lines}


def write_between(file: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    before, start, rest = file.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (start and end):
        raise SystemExit(f"{file}: no <!-- {name} --> and <!-- /{name} --> in it")
    file.write_text(f"{before}{start}{text}\n{end}{after}", encoding="utf-8")


def _row(title: str, found: Sequence[Line | None]) -> str:
    lines = [line for line in found if line is not None]
    if not lines:
        return f"| {title} | not measured |  |  |  |  |  |  |"
    top1 = [100 * line["top1_last"] for line in lines]
    teacher = [100 * line["teacher_top1"] for line in lines]
    complete = len(lines) == len(found)
    spread = f"{min(top1):.2f} to {max(top1):.2f}" if complete else f"{len(lines)} of {len(found)} seeds"
    steps = f"{_count(lines, 'generator_steps')} + {_count(lines, 'student_steps')}"
    seconds = " + ".join(f"{fmean(line[f'{phase}_seconds'] for line in lines):.0f} s" for phase in PHASES)
    cells = (
        title,
        f"{fmean(top1):.2f} % ({spread})",
        f"{fmean(teacher):.2f} %",
        f"{fmean(teacher) - fmean(top1):.2f}",
        f"{100 * fmean(line['agreement'] for line in lines):.2f} %",
        _count(lines, "images_synthesized"),
        steps,
        seconds,
    )
    return f"| {' | '.join(cells)} |"


PHASES = ("synthesis", "distillation")


def _count(lines: Sequence[Line], key: str) -> str:
    return f"{fmean(line[key] for line in lines):,.0f}"


def origin(lines: Sequence[Line]) -> str:
    """Where the figures come from, of all lines together."""
    seeds = sorted({line["seed"] for line in lines})
    processors = ", ".join(sorted({f"{line['processor']}, {line['device']}" for line in lines}))
    precisions = ", ".join(sorted({line["precision"] for line in lines}))
    torches = ", ".join(sorted({line["versions"]["torch"] for line in lines}))
    commits = ", ".join(sorted({(line["git_sha"] or "no checkout")[:12] for line in lines}))
    jobs = max(line["jobs"] for line in lines)
    beside = f", up to {jobs} runs beside each other" if jobs > 1 else ""
    dates = sorted({line["date"][:10] for line in lines})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"Seeds {', '.join(map(str, seeds))}. {processors}; {precisions}; torch {torches}{beside}; {days}. "
        f"Commits: {commits}."
    )
