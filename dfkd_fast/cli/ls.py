"""`dfkd-fast ls`: what there is. Reads tables and source files only; torch is imported for `ls kernels` alone."""

from __future__ import annotations

import ast
import importlib.util
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dfkd_fast.catalog import METHODS, MODELS, presets
from dfkd_fast.errors import unknown

USAGE = """usage: dfkd-fast ls [methods|presets|models|kernels]

Without an argument: methods, presets and models. `ls kernels` asks torch what this machine can run."""


def run(arguments: Sequence[str]) -> int:
    """List the sections that are named."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    for section in arguments:
        if section not in SECTIONS:
            raise unknown("ls", section, SECTIONS)
    sections = arguments or ("methods", "presets", "models")
    for section in sections:
        if len(sections) > 1:
            print(f"{section}:")
        SECTIONS[section]()
    return 0


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows with aligned columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def list_methods() -> None:
    """Each method with the first line of its file, which names the paper."""
    print_table((name, _title(target.partition(":")[0])) for name, target in METHODS.items())


def list_presets() -> None:
    """Each preset with its networks and what its source reports for them."""
    print_table(row for method in METHODS for row in _preset_rows(method))


def list_models() -> None:
    """Networks of our own, and how others are named."""
    others = [("tv:NAME", "torchvision's network of that name"), ("timm:NAME", "timm's network of that name")]
    print_table([*((name, about) for name, (_, about) in MODELS.items()), *others])


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
    "kernels": list_kernels,
}


def _title(module: str) -> str:
    """First line of a module's docstring, read from its source: importing it would import torch."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def _preset_rows(method: str) -> Iterable[tuple[str, ...]]:
    for name, file in presets(method).items():
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        about = table["preset"]
        pair = f"{table['teacher']} -> {table['student']}"
        top1 = f"{about['top1']} %" if "top1" in about else ""
        hours = f"{about['hours']} h" if "hours" in about else ""
        yield f"{method} --preset {name}", pair, top1, hours, about["source"]
