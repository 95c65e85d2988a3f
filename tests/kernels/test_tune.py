"""The offline tuner's choice and the file it writes; the times are made up, since a GPU's are not needed for that."""

import runpy

import pytest
import torch

from dfkd_kernels.bn_moments import tilings, tune
from dfkd_kernels.bn_moments.tilings import TILINGS, Tiling


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(tune, "SHAPES", ((1, 2, 3, 3),))
    monkeypatch.setattr(tune, "workload", lambda *args: lambda: None)
    monkeypatch.setattr(tune, "SEARCH", {"forward": [(1024, 4, 1, 208), (2048, 8, 3, 416), (4096, 8, 2, 832)]})


def test_takes_the_fastest_and_leaves_the_table(tiny):
    key = ("forward", "channels-last")
    before = dict(TILINGS)

    def timer(run):
        run()
        return abs(TILINGS[key].elements - 2048) + 1.0

    assert tune.best_tiling("forward", True, timer) == Tiling(2048, 8, 3, 416)
    assert before == TILINGS


def test_skips_what_does_not_fit(tiny):
    key = ("forward", "contiguous")

    def timer(run):
        if TILINGS[key].elements < 4096:
            raise tune.triton.runtime.errors.OutOfResources(1, 0, "shared memory")
        return 1.0

    assert tune.best_tiling("forward", False, timer).elements == 4096


def test_writes_a_table_that_can_be_read_back(tmp_path):
    table = {key: Tiling(1024, 4, 2, 100 + index) for index, key in enumerate(TILINGS)}
    with open(tilings.__file__) as file:
        text = tune.rewritten(file.read(), table, "a GPU, torch 2, triton 3")
    path = tmp_path / "tilings.py"
    path.write_text(text)
    read = runpy.run_path(str(path))
    assert {key: tuple(value) for key, value in read["TILINGS"].items()} == table
    assert "Measured on: a GPU, torch 2, triton 3.\n" in read["__doc__"]
    assert tune.rewritten(text, table, "a GPU, torch 2, triton 3") == text


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is something to measure on")
def test_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tune"])
    assert tune.main() == 2
    assert "no CUDA device" in capsys.readouterr().err
