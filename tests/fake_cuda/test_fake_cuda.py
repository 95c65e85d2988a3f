"""Every method's run on a card that is not there: from build over both steps and evaluation to the checkpoint.

Nothing mixes devices, waits or copies in a captured step, makes a tensor on the CPU or in float64 there, or keeps one
beyond its graph. And no step launches more kernels than bench/results/launches.json allows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd_fast.catalog import METHODS

HERE = Path(__file__).parent
TABLE = HERE.parent.parent / "bench/results/launches.json"
SMALL = ("--teacher", "cnn", "--student", "cnn_s")
NAMES = list(METHODS)
PARTS = [NAMES[start::4] for start in range(4)]
"""of the methods: a process runs several, the workers of a test run share the processes"""

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="for a torch without CUDA"),
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"),
]


def printed(script: str, *arguments: str) -> list[dict[str, Any]]:
    """What a script of this folder prints, in a process of its own: torch must be imported after the guard."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"OMP_NUM_THREADS": "1"})
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-3000:]
    return lines


def scanned(methods: Sequence[str], *arguments: str) -> dict[str, dict[str, Any]]:
    """The scan of each method, in which nothing was found."""
    runs = {run["case"]["method"]: run for run in printed("scan.py", *methods, *arguments)}
    assert list(runs) == list(methods)
    for name, run in runs.items():
        assert not run["error"], f"{name}: {run['error']}"
        assert not run["findings"], f"{name}: {run['findings']}"
        kinds = {step.partition(" ")[0].rstrip(",") for step in run["kernels"]}
        assert kinds == {"synthesis", "student"}, f"{name}: captured {list(run['kernels'])}"
    return runs


def test_each_planted_mistake_is_caught() -> None:
    (said,) = printed("planted.py")
    assert said["found"].pop("in a method") == ["host sync", "outlives its graph"]
    for name, kind in said["expected"].items():
        found = said["found"][name]
        assert [line for line in found if line.startswith(kind)] if kind else not found, f"{name}: {found}"


@pytest.mark.parametrize("methods", PARTS, ids=" ".join)
def test_bf16_and_its_launches(methods: list[str]) -> None:
    """On WRN-40-2 and WRN-16-2, whose launches are bounded."""
    table = json.loads(TABLE.read_text())
    for name, run in scanned(methods).items():
        if table["torch"] != torch.__version__.partition("+")[0]:
            continue  # another torch has other operators: nothing is to be learnt from how many
        bounds = {step: row["bound"] for step, row in table["steps"][name].items()}
        found = {step: sum(kernels.values()) for step, kernels in run["kernels"].items()}
        assert bounds.keys() == found.keys(), f"{name}: run `make bench SUITE=launches`"
        grown = {step: (count, bounds[step]) for step, count in found.items() if count > bounds[step]}
        assert not grown, f"{name}: more launches than the table allows: {grown}"


@pytest.mark.parametrize("methods", [NAMES[::2], NAMES[1::2]], ids=" ".join)
def test_fp16_on_one_of_two_ranks(methods: list[str]) -> None:
    scanned(methods, "--precision", "fp16", "--rank", "1", "--ranks", "2", *SMALL)


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
