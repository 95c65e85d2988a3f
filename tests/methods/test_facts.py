"""The catalogue's facts about each method agree with its class, its presets, the measured runs and README."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from types import ModuleType

import pytest

from dfkd_fast.catalog import FACTS, METHODS, presets
from dfkd_fast.cli.ls import needs, published
from dfkd_fast.cli.main import main
from dfkd_fast.config.sources import default_config
from dfkd_fast.training.assemble import load_method

ROOT = Path(__file__).parent.parent.parent
BENCH = ROOT / "bench" / "methods"
PARTS = ("cells", "table", "readme")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(BENCH)
    yield {name: importlib.import_module(name) for name in PARTS}
    for name in PARTS:
        del sys.modules[name]


def test_every_method_has_facts() -> None:
    missing = [name for name in METHODS if name not in FACTS]
    assert not missing, f"catalog.FACTS has no line for {', '.join(missing)}"
    assert list(FACTS) == list(METHODS), "catalog.FACTS lists other methods than catalog.METHODS, or in another order"


@pytest.mark.parametrize("name", METHODS)
def test_facts_are_the_classes(name: str) -> None:
    facts, method = FACTS[name], load_method(name)
    assert (facts.paper, facts.loop) == (method.paper, method.loop)
    assert facts.text == bool(method.needs.text)
    assert facts.real_images == method.needs.real_images
    can_do_without = hasattr(default_config(name).method, "bn_weight") and not method.needs.norm_inputs
    batchnorm = ("or --bn-weight 0" if can_do_without else "yes") if method.needs.batchnorm else "no"
    assert facts.batchnorm == batchnorm
    assert (ROOT / "docs" / "methods" / f"{facts.page or name}.md").exists()


@pytest.mark.parametrize("name", METHODS)
def test_the_published_number_stands_in_a_preset(name: str) -> None:
    files = [preset for preset in presets(name) if preset.startswith("cifar10") and not preset.startswith("cifar100")]
    cells = [entry for preset in files for entry in published(name, preset)]
    cells = [cell for cell in cells if (cell["teacher"], cell["student"]) == ("resnet34", "resnet18")]
    found = {cell["top1"] for cell in cells if "top1" in cell}
    cifar10 = FACTS[name].cifar10
    if cifar10 is None:
        assert not found, f"catalog.FACTS[{name!r}].cifar10: choose from {sorted(found)}, its presets have them"
    else:
        assert cifar10[0] in found, f"catalog.FACTS[{name!r}].cifar10: no cifar10 preset has {cifar10[0]}, but {found}"


def test_the_digits_numbers_are_the_measured_ones(bench: dict[str, ModuleType]) -> None:
    """The mean of three seeds of the present recipe; None where there are fewer."""
    recipes = [bench["cells"].Recipe.of(cell) for cell in bench["cells"].method_cells(list(METHODS), [0])]
    lines = (ROOT / "bench" / "results" / "digits.jsonl").read_text().splitlines()
    newest = {line["recipe_hash"]: line for line in map(json.loads, lines)}
    measured: dict[str, list[float]] = {name: [] for name in METHODS}
    for recipe, seed in product(recipes, (0, 1, 2)):
        line = newest.get(replace(recipe, config=replace(recipe.config, seed=seed)).recipe_hash)
        measured[recipe.cell.method] += [100 * line["top1_last"]] if line else []
    expected = {name: round(fmean(top1), 2) if len(top1) == 3 else None for name, top1 in measured.items()}
    assert {name: FACTS[name].digits for name in METHODS} == expected, "set catalog.FACTS[...].digits, then make readme"


def test_readme_has_the_table(bench: dict[str, ModuleType]) -> None:
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("<!-- methods -->\n")[2].partition("\n<!-- /methods -->")[0]
    assert table == bench["readme"].methods_table(), "make readme"


def test_ls_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "methods"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["METHOD", "paper", "loop", "needs", "digits", "CIFAR-10"]
    for (name, facts), line in zip(FACTS.items(), lines, strict=False):
        digits = "not measured" if facts.digits is None else f"{facts.digits:.1f} %"
        for cell in (name, facts.venue, facts.arxiv, facts.loop, needs(facts), digits):
            assert f" {cell} " in f"{line}  "
    assert max(map(len, [head, *lines])) <= 120
    assert "ResNet-34 -> ResNet-18" in lines[-1]
