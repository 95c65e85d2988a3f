"""The effect of precision on accuracy: each method in bf16 and in fp32, beside the spread between seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance

from cells import PRESET_PRECISION, TITLES, Recipe, method_cells
from table import Line, newest, origin

HEAD = (
    "| method | {0}: mean (lowest to highest) | {1}: mean (lowest to highest) | difference, points | ranges overlap "
    "| teacher, computed in {0} and {1} | time, {1} / {0} |\n|---|---|---|---|---|---|---|"
)


def precision_table(methods: Sequence[str], seeds: Sequence[int], lines: Sequence[Line], other: str) -> str:
    """A row for each method, in the presets' precision and in `other`, and what their differences come to together.

    Both have the same teacher. A run counts as in `table`, and where it really was computed in the precision that its
    column says.
    """
    known = newest(lines)
    rows, pairs, used = [], [], []
    for method in methods:
        ours = _runs(method, seeds, known, "", PRESET_PRECISION)
        theirs = _runs(method, seeds, known, other, other)
        used += [*ours, *theirs]
        if ours and theirs:
            pairs.append((ours, theirs))
        rows.append(_row(TITLES[method], ours, theirs, len(seeds)))
    text = "\n".join([HEAD.format(PRESET_PRECISION, other), *rows])
    noise = _noise(pairs)
    return "\n\n".join(filter(None, (text, noise, origin(used) if used else "")))


def _runs(method: str, seeds: Sequence[int], known: dict[str, Line], asked: str, computed: str) -> list[Line]:
    found = (known.get(Recipe.of(cell).recipe_hash) for cell in method_cells([method], list(seeds), asked))
    return [line for line in found if line is not None and line["precision"] == computed]


def _row(title: str, ours: list[Line], theirs: list[Line], count: int) -> str:
    cells = [title, _spread(ours, count), _spread(theirs, count)]
    if not (ours and theirs):
        return f"| {' | '.join(cells)} |  |  |  |  |"
    one, two = _top1(ours), _top1(theirs)
    overlap = max(min(one), min(two)) <= min(max(one), max(two)) + 1e-9
    teachers = (f"{100 * fmean(line['teacher_top1'] for line in part):.2f} %" for part in (ours, theirs))
    cells += [f"{fmean(two) - fmean(one):+.2f}", "yes" if overlap else "no", " and ".join(teachers)]
    return f"| {' | '.join([*cells, f'{_seconds(theirs) / _seconds(ours):.2f}'])} |"


def _noise(pairs: Sequence[tuple[list[Line], list[Line]]]) -> str:
    """What the differences are to be held against: the spread of one seed over all methods; empty where no method has
    several seeds in both precisions.
    """
    several = [[_top1(part) for part in pair] for pair in pairs if min(map(len, pair)) > 1]
    if not several:
        return ""
    groups = [group for pair in several for group in pair]
    pooled = sum((len(group) - 1) * variance(group) for group in groups) / sum(len(group) - 1 for group in groups)
    differences = [fmean(two) - fmean(one) for one, two in several]
    errors = [math.sqrt(pooled * (1 / len(one) + 1 / len(two))) for one, two in several]
    mean_error = math.hypot(*errors) / len(errors)
    within = sum(abs(value) <= 2 * error for value, error in zip(differences, errors, strict=True))
    return (
        f"The standard deviation of one seed, over all methods and both precisions, is {math.sqrt(pooled):.2f} points. "
        f"{within} of {len(several)} differences are within two standard errors ({2 * max(errors):.2f} points); their "
        f"mean is {fmean(differences):+.2f} points, with a standard error of {mean_error:.2f}."
    )


def _spread(lines: list[Line], count: int) -> str:
    if not lines:
        return "not measured"
    top1 = _top1(lines)
    spread = f"{min(top1):.2f} to {max(top1):.2f}" if len(lines) == count else f"{len(lines)} of {count} seeds"
    return f"{fmean(top1):.2f} % ({spread})"


def _top1(lines: list[Line]) -> list[float]:
    return [100 * line["top1_last"] for line in lines]


def _seconds(lines: list[Line]) -> float:
    return fmean(line["synthesis_seconds"] + line["distillation_seconds"] for line in lines)
