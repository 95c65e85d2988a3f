"""The tables of the race in docs/results.md, from the lines of the results file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

Line = dict[str, Any]

TITLES = {"nayer": "NAYER", "ssdkd": "SSD-KD", "fast": "Fast-5", "muse-s": "MUSE-S", "cmi": "CMI"}

STEPS_HEAD = (
    "| method | against | seeds | epochs, generator + student steps | ours, processor s | theirs | theirs / ours "
    "| ours, top-1 | theirs | ours minus theirs, points |\n|---|---|---|---|---|---|---|---|---|---|"
)
BUDGET_HEAD = (
    "| method | seeds | student steps: ours, released style | processor s: ours, released style | ours, top-1 "
    "| released style, top-1 | ahead by, points |\n|---|---|---|---|---|---|---|"
)


def steps_table(lines: Sequence[Line], methods: Sequence[str]) -> str:
    """(a): the same recipe and number of steps on both sides."""
    rows = []
    for method in methods:
        against = [("baseline", "released style"), ("released", "its release")]
        found = [(told, pairs) for role, told in against if (pairs := [*paired(lines, method, "ours-steps", role)])]
        rows += [_steps_row(method, told, pairs) for told, pairs in found]
        if not found:
            rows.append(f"| {TITLES[method]} | released style | not measured |  |  |  |  |  |  |  |")
    return "\n".join([STEPS_HEAD, *rows])


def budget_table(lines: Sequence[Line], methods: Sequence[str]) -> str:
    """(b): both sides' schedules end at the same budget."""
    rows = []
    for method in methods:
        pairs = [*paired(lines, method, "ours-budget", "baseline")]
        rows.append(_budget_row(method, pairs) if pairs else f"| {TITLES[method]} | not measured |  |  |  |  |  |")
    return "\n".join([BUDGET_HEAD, *rows])


def paired(lines: Sequence[Line], method: str, ours: str, theirs: str) -> Iterator[tuple[Line, Line]]:
    """The newest run of each role, seed by seed, of one budget and pair of networks; of the same steps where the
    comparison is of steps.
    """
    newest = {(each["role"], each["seed"]): each for each in lines if each["method"] == method}
    same = ("minutes", "teacher", "student")
    if ours == "ours-steps":
        same += ("epochs", "warmup_epochs", "synthesis_steps", "student_steps")
    for seed in sorted({seed for _, seed in newest}):
        pair = newest.get((ours, seed)), newest.get((theirs, seed))
        if pair[0] and pair[1] and all(pair[0][key] == pair[1][key] for key in same):
            yield pair[0], pair[1]


def origin(lines: Sequence[Line]) -> str:
    """Where the figures come from."""
    if not lines:
        return ""

    def all_of(key: str) -> str:
        return ", ".join(sorted({str(each[key]) for each in lines}))

    torches = ", ".join(sorted({each["versions"]["torch"] for each in lines}))
    ours = [each for each in lines if each["role"].startswith("ours")]
    precisions = ", ".join(sorted({each["precision"] for each in ours}))
    commits = ", ".join(sorted({(each["git_sha"] or "no checkout")[:12] for each in lines}))
    days = sorted({each["date"][:10] for each in lines})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    jobs = max(each["jobs"] for each in lines)
    beside = f", up to {jobs} runs beside each other" if jobs > 1 else ""
    return (
        f"{all_of('teacher')} to {all_of('student')}, {all_of('minutes')} core-minutes. {all_of('processor')}; ours in "
        f"{precisions}, the others in fp32; torch {torches}{beside}; {span}. Commits: {commits}."
    )


def tables(lines: Sequence[Line], methods: Sequence[str]) -> dict[str, str]:
    """Text by the name of its markers."""
    told = origin(lines)
    return {
        "race-steps": steps_table(lines, methods),
        "race-budget": budget_table(lines, methods) + (f"\n\n{told}" if told else ""),
    }


def write_between(file: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    before, start, rest = file.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (start and end):
        raise SystemExit(f"{file}: no <!-- {name} --> and <!-- /{name} --> in it")
    file.write_text(f"{before}{start}{text}\n{end}{after}", encoding="utf-8")


def _steps_row(method: str, against: str, pairs: Sequence[tuple[Line, Line]]) -> str:
    first = pairs[0][0]
    ratio = median(theirs["processor_seconds"] / ours["processor_seconds"] for ours, theirs in pairs)
    cells = (
        TITLES[method],
        against,
        _seeds(pairs),
        f"{first['epochs']}, {first['generator_steps']:,} + {first['student_steps']:,}",
        *(f"{fmean(pair[side]['processor_seconds'] for pair in pairs):,.0f}" for side in (0, 1)),
        f"{ratio:.2f}",
        *(_top1([pair[side] for pair in pairs]) for side in (0, 1)),
        _ahead(pairs),
    )
    return f"| {' | '.join(cells)} |"


def _budget_row(method: str, pairs: Sequence[tuple[Line, Line]]) -> str:
    cells = (
        TITLES[method],
        _seeds(pairs),
        ", ".join(f"{pairs[0][side]['student_steps']:,}" for side in (0, 1)),
        ", ".join(f"{fmean(pair[side]['processor_seconds'] for pair in pairs):,.0f}" for side in (0, 1)),
        *(_top1([pair[side] for pair in pairs]) for side in (0, 1)),
        _ahead(pairs),
    )
    return f"| {' | '.join(cells)} |"


def _seeds(pairs: Sequence[tuple[Line, Line]]) -> str:
    return " ".join(str(ours["seed"]) for ours, _ in pairs)


def _top1(lines: Sequence[Line]) -> str:
    values = [100 * each["top1"] for each in lines]
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{fmean(values):.2f} %{spread}"


def _ahead(pairs: Sequence[tuple[Line, Line]]) -> str:
    values = [100 * (ours["top1"] - theirs["top1"]) for ours, theirs in pairs]
    spread = f" ({min(values):+.2f} to {max(values):+.2f})" if len(values) > 1 else ""
    return f"{fmean(values):+.2f}{spread}"
