"""Imports go strictly downwards, and methods cannot reach real data: the architecture as a test."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dfkd_fast"

# Every module or package directly under dfkd_fast, from the ground up: one imports those of lower layers only. A module
# that is not listed fails: a new room needs a floor.
FLOORS = (
    {"errors", "rng"},
    {"catalog", "messages", "optim", "sampling", "parallel"},
    {"files"},
    {"config", "device"},
    {"losses"},
    {"models"},
    {"augment", "generators", "text"},
    {"pool", "procedural"},
    {"methods", "data"},
    {"costs", "reporting"},
    {"training"},
    {"benchmark", "deploy", "diagnosis"},
    {"api", "cli"},
    {"__main__"},
)
LAYERS = {name: number for number, floor in enumerate(FLOORS) for name in floor}
MOST_LOOSE = 8
"""modules that lie directly under dfkd_fast, beside the packages"""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, also inside functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("dfkd_fast.")} - {"__version__"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_strictly_downwards(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        assert rooms_of(imported(path)) <= {"api", "errors", "methods"}, "for types alone"
        return
    assert here in LAYERS, f"{here} has no layer"
    for other in rooms_of(imported(path)) - {here}:
        assert LAYERS[other] < LAYERS[here], f"{path.relative_to(ROOT)} imports {other}, which is not below {here}"


def test_modules_of_a_room_import_each_other_in_no_circle() -> None:
    """Inside functions and under TYPE_CHECKING neither."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules()}
    uses: dict[str, set[str]] = {}
    for name, path in names.items():
        full = imported(path)
        uses[name] = (full | {each.rpartition(".")[0] for each in full}) & (names.keys() - {name})
    assert len(uses["dfkd_fast.models.factory"]) > 5  # edges are found
    tuple(TopologicalSorter(uses).static_order())  # raises CycleError, which names the circle


def test_few_modules_lie_loose() -> None:
    loose = [path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"]
    assert len(loose) <= MOST_LOOSE, loose


def methods() -> list[Path]:
    return sorted((PACKAGE / "methods").rglob("*.py"))


@pytest.mark.parametrize("path", methods(), ids=lambda path: str(path.relative_to(PACKAGE / "methods")))
def test_methods_reach_neither_data_nor_each_other(path: Path) -> None:
    names = imported(path)
    assert not rooms_of(names) & {"data", "training", "reporting"}
    contracts = {"base", "exchange", "inner", "recipe", "stepwise"}
    method = path.relative_to(PACKAGE / "methods").parts[0].removesuffix(".py")  # a file, or the folder that it is in
    if method not in {"__init__", *contracts}:
        siblings = {name.split(".")[2] for name in names if name.startswith("dfkd_fast.methods.")} - contracts
        assert siblings <= {method}, f"{path.stem} imports {siblings}"


def test_importing_a_method_never_imports_data() -> None:
    """Through anything: the rooms that `methods` imports, and theirs, to the end."""
    uses = {
        name: set().union(*(rooms_of(imported(path)) for path in modules() if room(path) == name)) for name in LAYERS
    }
    reached, todo = {"methods"}, ["methods"]
    while todo:
        new = uses[todo.pop()] - reached
        reached |= new
        todo += new
    assert "losses" in reached  # the walk does follow imports
    assert "data" not in reached


def test_kernels_stand_alone() -> None:
    """dfkd_kernels imports torch, triton, numpy and the standard library, itself only by relative import."""
    kernels = ROOT / "kernels" / "dfkd_kernels"
    for path in sorted(kernels.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert not (node.module or "").startswith(("dfkd_fast", "dfkd_kernels")), path
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith(("dfkd_fast", "dfkd_kernels")) for alias in node.names), path


@pytest.mark.parametrize(
    "name", ["catalog", "errors", "messages/terminal", "messages/refusals", "files/limits", "device/allocator"]
)
def test_what_help_reads_needs_no_torch(name: str) -> None:
    path = PACKAGE / f"{name}.py"
    assert not any(name.split(".")[0] in ("torch", "numpy", "dfkd_kernels") for name in imported(path))
