"""Imports go strictly downwards, and methods cannot reach real data: the architecture as a test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dfkd_fast"

# Every module or package directly under dfkd_fast, by layer. A module that is not listed fails: a new room needs a
# floor.
LAYERS: dict[str, int] = {
    **dict.fromkeys(["errors", "catalog", "rng", "notes", "terminal", "refusals", "limits", "allocator"], 0),
    **dict.fromkeys(["files", "digests", "data_sets", "own_networks", "wordnet"], 0),
    **dict.fromkeys(
        [
            "config",
            "config_sources",
            "flags",
            "recipes",
            "runtime",
            "process_group",
            "joined",
            "joined_norm",
            "optim",
            "losses",
            "sampling",
            "compilation",
            "cache",
            "locks",
            "config_limits",
            "config_record",
            "config_sections",
            "pictures",
            "archives",
            "array_files",
            "image_rows",
            "file_trees",
            "switches",
        ],
        1,
    ),
    **dict.fromkeys(["models", "generators", "augment", "pool", "text", "text_encoders", "class_names"], 2),
    **dict.fromkeys(["methods", "data", "image_files", "cifar_files"], 3),
    **dict.fromkeys(["image_statistics", "image_stream", "image_decoders", "image_decoder_dali", "image_arrays"], 3),
    **dict.fromkeys(["class_folders", "class_order"], 3),
    **dict.fromkeys(["checkpoint", "state_tensors", "meters", "console", "loggers", "visualize", "costs"], 3),
    "loops": 4,
    "benchmark": 5,
    "cli": 6,
    "__main__": 7,
}
# Within one layer a package may use these neighbours; the arrows must not close a circle (checked below).
NEIGHBOURS: dict[str, set[str]] = {
    "own_networks": {"errors"},
    "data_sets": {"wordnet"},
    "compilation": {"cache"},
    "notes": {"terminal"},
    "config": {"config_limits", "config_sections", "flags", "recipes"},
    "runtime": {"compilation", "joined", "optim", "process_group", "switches"},
    "joined": {"process_group"},
    "joined_norm": {"joined", "process_group"},
    "config_record": {"config"},
    "config_sources": {"config", "config_record", "flags"},
    "pool": {"augment", "models"},
    "augment": {"models"},
    "generators": {"models"},
    "text": {"class_names", "text_encoders"},
    "text_encoders": {"models"},
    "class_names": {"models"},
    "loggers": {"console", "meters"},
    "costs": {"methods"},
    "archives": {"pictures"},
    "array_files": {"archives"},
    "image_arrays": {"class_folders"},
    "file_trees": {"archives"},
    "image_files": {"class_folders"},
    "data": {"class_folders", "image_arrays", "image_files", "cifar_files", "image_statistics", "image_stream"},
    "image_stream": {"image_files", "image_decoders", "image_decoder_dali"},
    "image_decoder_dali": {"image_files", "image_decoders"},
    "image_decoders": {"image_files"},
    "cifar_files": {"class_folders"},
}


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
        assert not rooms_of(imported(path))
        return
    assert here in LAYERS, f"{here} has no layer"
    for other in rooms_of(imported(path)) - {here}:
        allowed = LAYERS[other] < LAYERS[here] or other in NEIGHBOURS.get(here, set())
        assert allowed, f"{path.relative_to(ROOT)} (layer {LAYERS[here]}) imports {other} (layer {LAYERS[other]})"


def test_neighbours_close_no_circle() -> None:
    def reach(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            for other in NEIGHBOURS.get(todo.pop(), set()) - found:
                found.add(other)
                todo.append(other)
        return found

    for name in NEIGHBOURS:
        assert name not in reach(name)


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda path: path.stem)
def test_methods_reach_neither_data_nor_each_other(path: Path) -> None:
    names = imported(path)
    assert not rooms_of(names) & {"data", "loops", "checkpoint", "loggers"}
    contracts = {"base", "exchange", "recipe", "stepwise"}
    if path.stem not in {"__init__", *contracts}:
        siblings = {name.split(".")[2] for name in names if name.startswith("dfkd_fast.methods.")} - contracts
        paper = path.stem.partition("_")[0]  # a method in two files: muse.py and muse_scale.py
        assert all(name.partition("_")[0] == paper for name in siblings), f"{path.stem} imports {siblings}"


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


@pytest.mark.parametrize("name", ["catalog", "errors", "terminal", "refusals", "limits", "allocator"])
def test_what_help_reads_needs_no_torch(name: str) -> None:
    path = PACKAGE / f"{name}.py"
    assert not any(name.split(".")[0] in ("torch", "numpy", "dfkd_kernels") for name in imported(path))
