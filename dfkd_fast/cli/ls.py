"""`dfkd-fast ls`: what there is. Reads tables and source files only; torch is imported for `ls kernels` alone."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dfkd_fast.catalog import CIFAR10_PAIR, FACTS, METHODS, MODELS, MethodFacts, presets
from dfkd_fast.config.data_sets import data_set_of
from dfkd_fast.errors import unknown
from dfkd_fast.messages.terminal import page, show
from dfkd_fast.models.zoo.cards import PREFIX, ZOO, Card

USAGE = """usage: dfkd-fast ls [methods|presets [METHOD ...]|models|zoo|kernels]

Without an argument: what there is, on one screen. `ls presets` also shows the other results that were published for a
preset's data, each with its teacher, student and command. `ls kernels` asks torch what this machine can run."""


def run(arguments: Sequence[str]) -> int:
    """List the sections that are named."""
    if arguments and arguments[0] in ("-h", "--help"):
        page(USAGE)
        return 0
    if arguments[:1] == ["presets"] and len(arguments) > 1 and arguments[1] not in SECTIONS:
        for method in arguments[1:]:
            if method not in METHODS:
                raise unknown("ls presets", method, METHODS)
        list_presets(arguments[1:])
        return 0
    for section in arguments:
        if section not in SECTIONS:
            raise unknown("ls", section, SECTIONS)
    for section in arguments:
        if len(arguments) > 1:
            show(f"{section}:")
        SECTIONS[section]()
    if not arguments:
        list_all()
    return 0


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows with aligned columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        show("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def list_all() -> None:
    """Methods, the data that their presets are for, and networks, on a screen of 80 columns."""
    show("methods, and what their presets are for:")
    for name in METHODS:
        data = ", ".join(dict.fromkeys(data_set_of(preset) or preset for preset in presets(name)))
        show(f"  {name:14}{textwrap.shorten(data, 64, placeholder=' ...')}")
    show("networks:")
    for line in textwrap.wrap(", ".join((*MODELS, "tv:NAME", "timm:NAME", "FILE.py:NAME")), 78):
        show(f"  {line}")
    show("more: dfkd-fast ls methods|presets METHOD|models|zoo|kernels, cat METHOD/PRESET")


def list_methods() -> None:
    """Each method with its paper, what it needs, what we measured and what was published."""
    head = ("METHOD", "paper", "", "loop", "needs", "digits", "CIFAR-10")
    print_table([head, *(_method_row(name, FACTS[name]) for name in METHODS)])
    show("  needs: * not with --bn-weight 0, which gives that term up; text: class names (--text clip) or stand-ins")
    if any(FACTS[name].real_images for name in METHODS):
        show("  real images: part of the method, which is not data-free in the strict sense")
    show("  digits: our top-1, mean of three seeds (docs/results.md)")
    show(f"  CIFAR-10: the published top-1, {CIFAR10_PAIR}")


def needs(facts: MethodFacts) -> str:
    """What a method cannot do without beside the teacher; a star: there is a flag that does without."""
    batchnorm = {"yes": "BatchNorm", "or --bn-weight 0": "BatchNorm*", "no": ""}[facts.batchnorm]
    wanted = (batchnorm, "text" if facts.text else "", "real images" if facts.real_images else "")
    return ", ".join(filter(None, wanted)) or "nothing"


def list_presets(methods: Sequence[str] = tuple(METHODS)) -> None:
    """Each preset's published results: data set, networks, top-1, hours, source, and the flags that train them."""
    head = ("data", "teacher -> student", "top-1", "time", "source", "flags")
    for method in methods:
        entries = list(_entries(method))
        sources = list(dict.fromkeys(source for _, entry in entries for source in _sources(entry)))
        number = {source: f" [{place}]" for place, source in enumerate(sources, 1)}
        real = " --collected DATA" if FACTS[method].real_images else ""
        show(f"dfkd-fast train {method} FLAGS{real}")
        print_table([head, *(_preset_row(name, entry, number) for name, entry in entries)])
        for source in sources:
            show(f" {number[source]} {source}")


def list_models() -> None:
    """Networks of our own, and how others are named."""
    others = [
        ("zoo:NAME", "a published network with its weights: dfkd-fast ls zoo"),
        ("tv:NAME", "torchvision's network of that name; of its published weights the first, or tv:NAME@WEIGHTS"),
        ("timm:NAME", "timm's network of that name"),
        ("FILE.py:NAME", "your own: a class or function in a file that returns an nn.Module; its code is run"),
        ("package.module:NAME", "the same in a module that Python finds"),
    ]
    print_table([*((name, about) for name, (_, about) in MODELS.items()), *others])


def list_zoo() -> None:
    """Published networks, each by its card."""
    head = ("NAME", "data", "top-1", "licence", "source")
    print_table([head, *(_zoo_row(name, card) for name, card in ZOO.items())])
    show("  dfkd-fast teacher info zoo:NAME prints the whole card, and where its file is")


def list_kernels() -> None:
    """Each operator with the backend that runs it on this machine, and why others cannot."""
    import dfkd_kernels

    rows = dfkd_kernels.backends()
    table = []
    for op in dict.fromkeys(row.op for row in rows):
        active = [row.backend for row in rows if row.op == op and row.active]
        missing = [f"{row.backend}: {row.reason}" for row in rows if row.op == op and not row.available]
        table.append((op, *active, "; ".join(missing)))
    print_table(table)


SECTIONS: dict[str, Callable[[], None]] = {
    "methods": list_methods,
    "presets": list_presets,
    "models": list_models,
    "zoo": list_zoo,
    "kernels": list_kernels,
}


def _method_row(name: str, facts: MethodFacts) -> tuple[str, ...]:
    digits = "not measured" if facts.digits is None else f"{facts.digits:.1f} %"
    cifar10 = "{:.2f} % ({})".format(*facts.cifar10) if facts.cifar10 else ""
    return name, facts.venue, facts.arxiv, facts.loop, needs(facts), digits, cifar10


def _zoo_row(name: str, card: Card) -> tuple[str, ...]:
    return f"{PREFIX}{name}", card.data_set, f"{card.top1:.2f} %", card.licence.partition(",")[0], card.source


def published(method: str, preset: str) -> list[dict[str, Any]]:
    """What a preset's source reports, its own pair first: teacher, student, top1, hours, source and the flags behind
    `--preset` that lead there; what is not published is absent. `hours_source`: where the hours are from, if from
    elsewhere; `runs`: top1, std and source of several runs.
    """
    table = tomllib.loads(presets(method)[preset].read_text(encoding="utf-8"))
    pair, about = {key: table[key] for key in ("teacher", "student")}, table["preset"]
    others = about.pop("published", [])
    found = [pair | about]
    for entry in others:
        networks = [f"--{key} {entry[key]}" for key in pair if entry[key] != pair[key]]
        flags = " ".join([*networks, *filter(None, [entry.get("flags")])])
        shared = {key: about[key] for key in ("source", "hours_source") if key in about}
        found.append({**shared, **entry, "flags": flags})
    return found


def _entries(method: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Every published result of a method: its preset and what `published` says of it."""
    return ((name, entry) for name in presets(method) for entry in published(method, name))


def _sources(entry: dict[str, Any]) -> list[str]:
    """Of the top-1, then of hours and of several runs where those are from elsewhere."""
    runs = entry.get("runs", {})
    return [entry["source"], *filter(None, (entry.get("hours_source"), runs.get("source")))]


def _preset_row(name: str, entry: dict[str, Any], number: dict[str, str]) -> tuple[str, ...]:
    """Columns of `ls presets`; a number from elsewhere than the row's source has the number of its own behind it."""
    top1 = f"{entry['top1']:.2f} %" if "top1" in entry else ""
    hours = f"{entry['hours']:.2f} h{number.get(entry.get('hours_source', ''), '')}" if "hours" in entry else ""
    if runs := entry.get("runs"):
        top1 += f" ({runs['top1']} +- {runs['std']}{number[runs['source']]})"
    flags = " ".join(filter(None, ("--preset", name, entry.get("flags"))))
    networks = f"{entry['teacher']} -> {entry['student']}"
    return data_set_of(name) or name, networks, top1, hours, number[entry["source"]].strip(), flags
