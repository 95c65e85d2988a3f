"""Every method's run on a card that is not there: from build over both steps and evaluation to the checkpoint.

Nothing mixes devices, waits or copies in a captured step, makes a tensor on the CPU or in float64 there, or keeps one
beyond its graph. And no step launches more kernels than bench/results/launches.json allows.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd_fast.catalog import METHODS
from dfkd_fast.config.setting import settings_of
from dfkd_fast.config.sources import default_config

HERE = Path(__file__).parent
TABLE = HERE.parent.parent / "bench/results/launches.json"
NAMES = list(METHODS)
PARTS = [NAMES[start::4] for start in range(4)]
"""of the methods: a process of the nightly scans runs several"""
APART = {"test_each_planted_mistake_is_caught": "planted", "test_evaluation_of_images_on_a_card": "evaluation"}
TABLED = "nayer"
"""the method whose launches on WRN-40-2 and WRN-16-2 every change counts; the others' every night"""

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="for a torch without CUDA"),
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"),
]


def started(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A script of this folder, in a process of its own: torch must be imported after the guard."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(HERE / script), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment | {"OMP_NUM_THREADS": "1"})


def printed(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The JSON lines that it prints, as they come."""
    assert process.stdout is not None
    yield from (json.loads(line) for line in process.stdout if line.startswith("{"))


@pytest.fixture(scope="module")
def said(request: pytest.FixtureRequest) -> Iterator[Callable[[str], dict[str, Any]]]:
    """What one process says of a scan by its name; it runs those of the tests that were chosen, in their order."""
    here = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path]
    names = [
        item.callspec.params["scan"] if hasattr(item, "callspec") else APART[item.name]
        for item in here
        if "said" in item.fixturenames
    ]
    process = started("in_ci.py", *names)
    lines, known = zip(names, printed(process), strict=False), {}

    def find(name: str) -> dict[str, Any]:
        while name not in known:
            found = next(lines, None)
            assert found is not None, f"the scans ended, with what stands in the captured output, before {name}"
            known[found[0]] = found[1]
        return known[name]

    yield find
    process.terminate()
    process.communicate()


def check(name: str, run: dict[str, Any]) -> None:
    """Nothing was found, and both of a method's steps were captured."""
    assert not run["error"], f"{name}: {run['error']}"
    assert not run["findings"], f"{name}: {run['findings']}"
    kinds = {step.partition(" ")[0].rstrip(",") for step in run["kernels"]}
    learns = any(stated.synthesis_rate for *_, stated in settings_of(default_config(run["case"]["method"]).method))
    assert kinds == {"student", *(["synthesis"] if learns else [])}, f"{name}: captured {list(run['kernels'])}"


def check_bounds(name: str, run: dict[str, Any], part: str | None = None) -> None:
    """No step launches more than the table, or this part of it, allows."""
    table = json.loads(TABLE.read_text())
    if table["torch"] != torch.__version__.partition("+")[0]:
        return  # another torch has other operators: nothing is to be learned from how many
    bounds = {step: row["bound"] for step, row in (table[part] if part else table)["steps"][name].items()}
    found = {step: sum(kernels.values()) for step, kernels in run["kernels"].items()}
    assert bounds.keys() == found.keys(), f"{name}: run `make bench SUITE=launches`"
    grown = {step: (count, bounds[step]) for step, count in found.items() if count > bounds[step]}
    assert not grown, f"{name}: more launches than the table allows: {grown}"


def scanned(methods: Sequence[str], *arguments: str) -> dict[str, dict[str, Any]]:
    """The scan of each method, in which nothing was found."""
    runs = {run["case"]["method"]: run for run in printed(started("scan.py", *methods, *arguments))}
    assert list(runs) == list(methods)
    for name, run in runs.items():
        check(name, run)
    return runs


def test_each_planted_mistake_is_caught(said: Callable[[str], dict[str, Any]]) -> None:
    found = dict(said("planted")["found"])
    assert found.pop("in a method") == ["host sync", "outlives its graph"]
    for name, kind in said("planted")["expected"].items():
        assert [line for line in found[name] if line.startswith(kind)] if kind else not found[name], f"{name}: {found}"


def test_evaluation_of_images_on_a_card(said: Callable[[str], dict[str, Any]]) -> None:
    """Those on the card itself and those on another: neither can be pinned. And a card has its number."""
    assert said("evaluation") == {"cuda:0": [], "cuda:1": [], "cpu": [], "devices": ["cuda:0"] * 3}


@pytest.mark.parametrize("scan", [f"{TABLED}-table", *(f"{name}-bf16" for name in NAMES if name != TABLED)])
def test_bf16(scan: str, said: Callable[[str], dict[str, Any]]) -> None:
    run = said(scan)
    check(scan, run)
    if scan == f"{TABLED}-table":
        check_bounds(TABLED, run)


@pytest.mark.parametrize("scan", [f"{name}-fp16" for name in NAMES])
def test_fp16_on_one_of_two_ranks_and_its_launches(scan: str, said: Callable[[str], dict[str, Any]]) -> None:
    run = said(scan)
    check(scan, run)
    check_bounds(run["case"]["method"], run, "small")


@pytest.mark.nightly
@pytest.mark.parametrize("methods", PARTS, ids=" ".join)
def test_launches(methods: list[str]) -> None:
    """On WRN-40-2 and WRN-16-2, for which there are goals."""
    for name, run in scanned(methods).items():
        check_bounds(name, run)


@pytest.mark.nightly
@pytest.mark.parametrize("methods", PARTS, ids=" ".join)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_two_ranks_run_the_same_kernels(methods: list[str], precision: str) -> None:
    """Their collectives, too, which are counted among them."""
    first, second = (scanned(methods, "--precision", precision, "--rank", rank, "--ranks", "2") for rank in ("0", "1"))
    for name, run in first.items():
        assert run["kernels"] == second[name]["kernels"], name


@pytest.mark.nightly
@pytest.mark.parametrize("methods", PARTS, ids=" ".join)
def test_fp16_on_one_card(methods: list[str]) -> None:
    scanned(methods, "--precision", "fp16")


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_joined_ranks(precision: str) -> None:
    scanned(["nayer"], "--precision", precision, "--ranks", "2", "--bn-scope", "global")


def test_the_page_names_every_count_above_its_goal() -> None:
    """Synthesis at most 460 launches, a student step at most 291."""
    page = (HERE.parent.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"\d+(?:,\d{3})*", page.partition("Above the goal are:")[2].partition("\n\nNone of")[0]))
    for method, steps in json.loads(TABLE.read_text())["steps"].items():
        for step, bound in steps.items():
            goal = 291 if step.startswith("student") else 460
            assert bound["bound"] <= goal or f"{bound['bound']:,}" in numbers, f"{method}: {step}: {bound['bound']}"
