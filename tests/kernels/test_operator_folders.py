"""One plan and one word for each operator: its folder, schemas, C++ sources, tests and benchmark."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import dfkd_kernels
from dfkd_kernels.backend import OPS
from dfkd_kernels.registration import Operator

ROOT = Path(__file__).parents[2]
PACKAGE, CSRC = ROOT / "kernels/dfkd_kernels", ROOT / "csrc"
PLAN = {"__init__.py", "README.md", "reference.py", "ops.py", "triton.py"}
LONGEST = 250
"""lines of a module: beyond it the launchers move from `triton.py` to `launch.py`"""
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/ops.py"))


def words(folder: str) -> set[str]:
    """The folder's own, and those of public functions that share it under another word."""
    public = {name for name, home in dfkd_kernels._HOME.items() if home.startswith(f".{folder}.") and name.islower()}
    return {folder} | {name for name in public if not starts_with(name, {folder})}


def starts_with(name: str, some: set[str]) -> bool:
    return any(name == word or name.startswith(f"{word}_") for word in some)


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_every_operator_has_its_folder() -> None:
    assert {folder: sum(starts_with(op, {folder}) for op in OPS) for folder in FOLDERS} == dict.fromkeys(FOLDERS, 1)
    assert len(OPS) == len(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_has_the_files_of_the_plan(folder: str) -> None:
    path = PACKAGE / folder
    files = {file.name for file in path.iterdir() if file.is_file()}
    assert files - {"launch.py"} == PLAN
    assert all(lines_of(file) <= LONGEST for file in path.glob("*.py"))
    if "launch.py" in files:
        assert lines_of(path / "launch.py") + lines_of(path / "triton.py") > LONGEST, "it fits into triton.py"
    assert (path / "README.md").read_text().startswith(f"# {folder}\n")


@pytest.mark.parametrize("folder", FOLDERS)
def test_schemas_start_with_the_folders_word(folder: str) -> None:
    module = importlib.import_module(f"dfkd_kernels.{folder}.ops")
    operators = [value for value in vars(module).values() if isinstance(value, Operator)]
    schemas = [operator.overload.name().partition("::")[2] for operator in operators]
    assert schemas
    assert [name for name in schemas if not starts_with(name, words(folder))] == []


def test_native_schemas_and_sources_carry_the_words() -> None:
    known = set().union(*map(words, FOLDERS))
    schemas = re.findall(r'm\.def\(\s*"(\w+)\(', (CSRC / "library.cpp").read_text())
    assert len(schemas) >= len(FOLDERS)
    assert [name for name in schemas if not starts_with(name, known)] == []
    assert {path.stem for path in CSRC.glob("cpu/*.cpp")} == known
    assert {path.stem for path in CSRC.glob("cuda/*.cu")} <= known


@pytest.mark.parametrize("folder", FOLDERS)
def test_tests_and_benchmark_carry_the_word(folder: str) -> None:
    here = ROOT / "tests/kernels"
    assert (here / f"test_{folder}.py").is_file()
    assert (here / f"aot_cases/{folder}.py").is_file()
    assert (ROOT / f"bench/kernels/bench_{folder}.py").is_file()
