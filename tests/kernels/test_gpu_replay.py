"""bench/gpu/replay.py's verdict: what captured steps may differ in from the same steps as Python, and what not."""

import importlib
import json
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def replay(monkeypatch):
    """bench/gpu/replay.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "bench/gpu"))
    monkeypatch.delitem(sys.modules, "replay", raising=False)
    return importlib.import_module("replay")


def found_by_steps(**changed):
    """What a run of bench/gpu/replay.py returns, in little."""
    torch.manual_seed(0)
    found = {f"terms/{step}": torch.rand(3) + 1 for step in range(4)}
    found |= {f"gradients/student/0/{place}": torch.randn(50, 4) for place in range(3)}
    found["gradients/student/0/3"] = 1e-5 * torch.randn(4)  # a bias before BatchNorm
    found |= {"statistics/student/mean": torch.randn(9), "weights/student/conv": torch.randn(9)}
    return found | changed


def test_replays_may_differ_as_sums_in_another_order_do(replay, tmp_path):
    """Rounding errors of a gradient that is nothing else, and what Adam makes of them, are no fault of a replay."""
    first = found_by_steps()
    noise = {key: value * (1 + 2**-8 * torch.randn(value.shape)) for key, value in first.items()}
    noise["gradients/student/0/3"] = 1e-5 * torch.randn(4)
    noise["weights/student/conv"] = -first["weights/student/conv"]
    report = replay.StepReport("replay", False, tmp_path)
    replay.judge(report, "same bits twice", (first, first, noise))
    replay.judge(report, "atomics", (first, noise, first))
    assert not report.failed


@pytest.mark.parametrize(
    "changed",
    [
        {"terms/3": torch.tensor([1.0, 2.0, 3.0])},
        {"terms/3": torch.full((3,), torch.nan)},
        {"terms/4": torch.ones(3)},
        {"gradients/student/0/1": torch.zeros(50, 4)},
        {"gradients/student/0/3": torch.ones(4)},
        {"statistics/student/mean": torch.zeros(9)},
    ],
    ids=["another term", "nan", "one step more", "a lost gradient", "a gradient from nowhere", "lost statistics"],
)
def test_a_replay_that_does_something_else_fails(replay, tmp_path, changed):
    report = replay.StepReport("replay", False, tmp_path)
    replay.judge(report, "method", (found_by_steps(), found_by_steps(), found_by_steps(**changed)))
    assert report.failed == ["method"]


def test_two_runs_with_nothing_in_common_are_no_measure(replay, tmp_path):
    first, second = found_by_steps(), found_by_steps(**{"terms/3": torch.zeros(3)})
    report = replay.StepReport("replay", False, tmp_path)
    replay.judge(report, "method", (first, second, first))
    (row,) = (json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    assert row["result"] == "not run"
    assert "too far apart to compare with, in terms" in row["reason"]


def test_a_step_that_was_cut_goes_on_behind_the_methods_that_passed(replay, tmp_path, monkeypatch):
    report = replay.StepReport("replay", False, tmp_path)
    report.row("nayer")
    report.row("fast", ok=False)
    monkeypatch.setenv("OUT_DIR", str(tmp_path))
    for flags, done in (["--resume"], {"nayer"}), ([], set()):
        monkeypatch.setattr(sys, "argv", ["replay.py", *flags])
        assert replay.open_report("replay", "") == replay.StepReport(
            "replay", False, tmp_path, frozenset(done), start=ANY
        )
        assert not replay.open_report("race", "").done
