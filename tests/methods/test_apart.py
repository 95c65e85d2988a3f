"""Knowledge of one method stays in its file or folder: no other part of the package names it."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import dfkd_fast
from dfkd_fast.catalog import METHODS
from dfkd_fast.config.sources import default_config
from dfkd_fast.methods.base import Method, MethodConfig
from dfkd_fast.training.assemble import load_method

PACKAGE = Path(dfkd_fast.__file__).parent
SHARED = {PACKAGE / "catalog.py", *(PACKAGE / "methods" / f"{name}.py" for name in ("base", "recipe", "stepwise"))}


def home_of(cls: type) -> Path:
    """The file of a method, or its folder."""
    file = Path(inspect.getfile(cls))
    return file if file.parent.name == "methods" else file.parent


def own_fields() -> Iterator[tuple[str, Path]]:
    """Settings that only the methods of one file or folder have, with that place."""
    homes: dict[str, set[Path]] = {}
    for name in METHODS:
        home, config = home_of(load_method(name)), type(default_config(name).method)
        for item in fields(config):
            homes.setdefault(item.name, set()).add(home)
    common = {item.name for item in fields(MethodConfig)}
    yield from ((name, *places) for name, places in homes.items() if len(places) == 1 and name not in common)


def sources(home: Path) -> Iterator[tuple[Path, str]]:
    """Every other module of the package."""
    for file in PACKAGE.rglob("*.py"):
        if file not in SHARED and file != home and home not in file.parents:
            yield file, file.read_text(encoding="utf-8")


def test_no_setting_of_one_method_is_read_elsewhere() -> None:
    found = []
    for name, home in own_fields():
        flag = name.replace("_", "-")
        use = re.compile(
            rf"\b(?:config|recipe)\.{name}\b|[\"']method\.{name}[\"']|--(?:method\.)?(?:no-)?{flag}(?![\w-])"
            rf"|attr\(\w+, [\"']{name}[\"']|else [\"']{name}[\"']"
        )
        found += [f"{file.relative_to(PACKAGE)}: {name}" for file, text in sources(home) if use.search(text)]
    assert found == []


def test_no_class_of_one_method_is_named_elsewhere() -> None:
    """Neither the method nor its config, nor any other class that its file or folder defines."""
    found = []
    for home in {home_of(load_method(method)) for method in METHODS}:
        names = defined_in(home)
        for file, text in sources(home):
            read = code(text)
            found += [f"{file.relative_to(PACKAGE)}: {name}" for name in names if re.search(rf"\b{name}\b", read)]
    assert found == []


def defined_in(home: Path) -> list[str]:
    files = home.rglob("*.py") if home.is_dir() else [home]
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    return [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def code(text: str) -> str:
    """Without docstrings and comments, which may say whose method something is from."""
    return re.sub(r'""".*?"""|#[^\n]*', "", text, flags=re.DOTALL)


def test_the_contract_is_small() -> None:
    """At most ten methods and four class attributes, and no hook that one method alone uses."""
    hooks = [name for name, value in vars(Method).items() if inspect.isfunction(value) and not name.startswith("_")]
    attributes = [name for name, kind in Method.__annotations__.items() if "ClassVar" in str(kind)]
    assert len(hooks) <= 10
    assert len(attributes) <= 4
    homes = {name: home_of(load_method(name)) for name in METHODS}
    users: Counter[str] = Counter()
    for hook in hooks:
        users[hook] = len(
            {
                homes[name]
                for name in METHODS
                if any(
                    hook in vars(cls) for cls in load_method(name).__mro__[: load_method(name).__mro__.index(Method)]
                )
            }
        )
    assert [hook for hook, count in users.items() if count < 2] == []
