"""The offline tuner's choice and the file it writes; the times are made up, since a GPU's are not needed for that."""

import importlib.util
import runpy
from pathlib import Path

import pytest
import torch

from dfkd_kernels.bn_act_moments import launch
from dfkd_kernels.bn_act_moments.launch import TILINGS, Tiling

TOOL = Path(__file__).parents[2] / "bench/kernels/tune.py"


@pytest.fixture(scope="module")
def tune():
    spec = importlib.util.spec_from_file_location("tune", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(monkeypatch, tune):
    monkeypatch.setattr(tune, "SHAPES", ((1, 2, 3, 3),))
    monkeypatch.setattr(tune, "workload", lambda *args: lambda: None)
    monkeypatch.setattr(tune, "SEARCH", {"forward": [(1024, 4, 1, 208), (2048, 8, 3, 416), (4096, 8, 2, 832)]})


def test_takes_the_fastest_and_leaves_the_table(tiny, tune):
    key = ("forward", "channels-last")
    before = dict(TILINGS)

    def timer(run):
        run()
        return abs(TILINGS[key].elements - 2048) + 1.0

    assert tune.best_tiling("forward", True, timer) == Tiling(2048, 8, 3, 416)
    assert before == TILINGS


def test_skips_what_does_not_fit(tiny, tune):
    key = ("forward", "contiguous")

    def timer(run):
        if TILINGS[key].elements < 4096:
            raise tune.triton.runtime.errors.OutOfResources(1, 0, "shared memory")
        return 1.0

    assert tune.best_tiling("forward", False, timer).elements == 4096


def test_writes_a_table_that_can_be_read_back(tmp_path, tune):
    """Nothing but the table and where it was measured changes."""
    table = {key: Tiling(1024, 4, 2, 100 + index) for index, key in enumerate(TILINGS)}
    before = Path(launch.__file__).read_text()
    text = tune.rewritten(before, table, "a GPU, torch 2, triton 3")
    assert tune.rewritten(text, table, "a GPU, torch 2, triton 3") == text
    assert "Measured on: a GPU, torch 2, triton 3.\n" in text
    old, new = before.splitlines(), text.splitlines()
    changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    assert len(changed) == len(TILINGS) + 1
    path = tmp_path / "table.py"
    path.write_text("from typing import NamedTuple\n\n\n" + text[text.index("class Tiling") : text.index("class Plan")])
    read = runpy.run_path(str(path))
    assert {key: tuple(value) for key, value in read["TILINGS"].items()} == table


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is something to measure on")
def test_needs_a_gpu(monkeypatch, capsys, tune):
    monkeypatch.setattr("sys.argv", ["tune"])
    assert tune.main() == 2
    assert "no CUDA device" in capsys.readouterr().err
