"""The methods' pages and files: what a page names exists, a file stays readable, a golden trajectory is kept."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dfkd_fast.catalog import METHODS

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
REFERENCE = re.compile(r"(?:(?P<file>[\w/]+\.py)(?:: )?)?(?P<name>[A-Za-z_]\w*(?:\.\w+)?)?")


def members() -> set[str]:
    """`Class.name` of every method, attribute and field in both packages, also of its base classes."""
    own: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for file in [*(ROOT / "dfkd_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
                own.setdefault(node.name, set()).update(names_in(node))
    found = set()
    for name in own:
        todo, seen = [name], set()
        while todo:
            cls = todo.pop()
            if cls in own and cls not in seen:
                seen.add(cls)
                todo += bases[cls]
                found |= {f"{name}.{member}" for member in own[cls]}
    return found


def names_in(node: ast.ClassDef) -> set[str]:
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef):
            found.add(part.name)
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self":
            found.add(part.attr)
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found.add(part.target.id)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_exists(page: Path) -> None:
    known = members()
    checked = 0
    for quoted in re.findall(r"`([^`\n]+)`", page.read_text()):
        match = REFERENCE.fullmatch(quoted)
        if match is None or not (match["file"] or "." in (match["name"] or "")):
            continue
        checked += 1
        if match["file"]:
            file = next(
                (path for path in (ROOT / match["file"], ROOT / "dfkd_fast" / match["file"]) if path.exists()), None
            )
            assert file is not None, f"{page.name}: {quoted}"
            parts = (match["name"] or "").split(".")
            assert all(re.search(rf"\b{part}\b", file.read_text()) for part in parts), f"{page.name}: {quoted}"
        elif quoted[0].isupper():
            assert quoted in known, f"{page.name}: {quoted}"
    assert checked > 5


@pytest.mark.parametrize(
    "file", sorted((ROOT / "dfkd_fast" / "methods").rglob("[a-z]*.py")), ids=lambda file: file.stem
)
def test_a_method_file_can_be_read_in_one_go(file: Path) -> None:
    """About 150 lines; the contract, base.py, is no method."""
    assert len(file.read_text().splitlines()) <= (250 if file.stem == "base" else 180)


def test_every_method_has_a_golden_trajectory() -> None:
    """Of the module: MUSE and MUSE-S make images by the same code."""
    for target in METHODS.values():
        module = target.partition(":")[0].split(".")[2]
        assert (ROOT / "tests" / "golden" / f"{module}.safetensors").exists()
        assert "golden" in (ROOT / "tests" / "methods" / f"test_{module}.py").read_text()


def test_every_methods_whole_steps_are_stated_apart() -> None:
    """From the paper, in float64: see tests/methods/whole_steps."""
    folder = Path(__file__).parent / "whole_steps"
    stated = "".join(file.read_text() for file in sorted(folder.glob("test_*_steps.py")))
    for target in METHODS.values():
        module, _, name = target.partition(":")
        assert re.search(rf"^from {module} import .*\b{name}\b", stated, re.MULTILINE), name
