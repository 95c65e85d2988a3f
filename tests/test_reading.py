"""Limits on what a newcomer has to read: one run in seven files, a method in one, the house on one page; its words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dfkd_fast"


def lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def seven_files(page: str) -> list[str]:
    """The files that a page's section about reading a run names, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.search(r"^## Read a run.*?(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    return re.findall(r"`(\w+/\w+\.py)`", section[0])


def test_a_run_is_read_in_seven_files() -> None:
    named = seven_files("CONTRIBUTING.md")
    assert len(named) == 7
    assert named == seven_files("docs/architecture.md")
    assert sum(len(lines_of(PACKAGE / name)) for name in named) <= 1150


def test_nayer_reads_as_its_algorithm_box() -> None:
    text = lines_of(PACKAGE / "methods" / "nayer.py")
    assert len(text) <= 130
    start = next(number for number, line in enumerate(text) if "def synthesize" in line)
    end = next(number for number, line in enumerate(text[start:], start) if "yield" in line)
    assert sum("line" in line or "to 10" in line for line in text[start : end + 1]) >= 4


def test_the_house_is_one_page() -> None:
    page = lines_of(ROOT / "docs" / "architecture.md")
    assert len(page) <= 120
    assert max(map(len, page)) <= 120


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_prose_is_at_most_120_columns_wide(page: str) -> None:
    """Tables and code excepted."""
    prose = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_make_has_at_most_ten_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    targets = set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))
    assert targets == set(phony.split())
    assert len(targets) <= 10


def test_a_modules_docstring_says_what_it_holds() -> None:
    """A noun phrase or an imperative, as the language has it: not "What a run is", but "The config of a run"."""
    files = [file for room in ("dfkd_fast", "kernels", "bench", "tests") for file in (ROOT / room).rglob("*.py")]
    assert len(files) > 300
    opened = {str(file): ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) for file in files}
    clause = re.compile(r"(What|Where|Which|How|Whether|When|In which|Who)\b")
    assert [name for name, text in opened.items() if text and clause.match(text)] == []


def test_no_module_and_no_function_is_long() -> None:
    """Modules of both packages at most 250 lines, a paper's at most 180, functions 50 without their docstrings.

    Triton kernels are excepted: one is a whole formula, that nothing can be called out of at no cost.
    """
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "kernels" / "dfkd_kernels").rglob("*.py")]
    long = []
    for file in files:
        count = len(lines_of(file))
        if count > (180 if PACKAGE / "methods" in file.parents else 250):
            long.append(f"{file.relative_to(ROOT)}: {count} lines")
        functions = (node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.FunctionDef))
        long += [f"{file.relative_to(ROOT)}: {each.name}" for each in functions if length(each) > 50]
    assert long == []
    assert len(files) > 200


def length(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring; 0 for a Triton kernel."""
    if any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list):
        return 0
    whole, first = function.end_lineno, function.body[0]
    assert whole is not None
    assert first.end_lineno is not None
    documented = ast.get_docstring(function) is not None
    return whole - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if documented else 0)
