"""docs/parity.md lists every loss, and what it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ROWS = [
    re.findall(r"`([^`]+)`", line)
    for line in (ROOT / "docs" / "parity.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| formula")
]


def defined(file: Path) -> set[str]:
    """Public functions and classes of a module."""
    body = ast.parse(file.read_text()).body
    return {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")}


def test_every_loss_is_listed() -> None:
    listed = {row[0] for row in ROWS}
    for file in (ROOT / "dfkd_fast" / "losses").glob("*.py"):
        assert {f"losses/{file.name}: {name}" for name in defined(file)} <= listed


def test_what_is_listed_exists_and_is_tested_there() -> None:
    for code, *tests in ROWS:
        file, _, name = code.partition(": ")
        assert name in defined(ROOT / "dfkd_fast" / file)
        assert tests
        for test in tests:
            assert (ROOT / test).is_file(), test
        if file.startswith("losses/"):
            assert re.search(rf"\b{name}\b", (ROOT / tests[0]).read_text()), code
