"""The steps of bench/gpu_check.py by themselves: what one lacks or fails at is a row, and does not keep the rest."""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def step(monkeypatch, tmp_path):
    """step(name, *flags) imports a step's module, as if it was started with these flags; OUT_DIR is relative."""
    monkeypatch.syspath_prepend(str(ROOT / "bench/gpu"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUT_DIR", "out")
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path))

    def load(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *flags])
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def rows(folder):
    lines = (folder / "out/rows.jsonl").read_text().splitlines()
    return {row["row"]: row for row in map(json.loads, lines)}


@pytest.mark.parametrize("lack", ["docstring_parser", "typeguard", "setuptools"])
def test_a_package_that_is_missing_is_named(step, monkeypatch, tmp_path, lack):
    describe, find = step("describe", "--rehearse"), importlib.util.find_spec
    monkeypatch.setattr(describe.importlib.util, "find_spec", lambda name: None if name == lack else find(name))
    assert describe.main() == 1
    assert rows(tmp_path)["packages"]["missing"] == lack
    assert rows(tmp_path)["versions"]["result"] == "ok"


def test_setuptools_that_cannot_read_our_licence_is_named(step, monkeypatch, tmp_path):
    describe = step("describe", "--rehearse")
    monkeypatch.setattr(describe.importlib.metadata, "version", lambda name: "68.1.2")
    assert describe.main() == 1
    assert rows(tmp_path)["packages"]["missing"] == "setuptools>=77 (it is 68.1.2)"


def test_tools_that_are_missing_are_named(step, monkeypatch, tmp_path):
    describe = step("describe")
    monkeypatch.setattr(describe, "card", lambda report: None)
    monkeypatch.setattr(describe.shutil, "which", lambda name: None if "n" in name else f"/usr/bin/{name}")
    assert describe.main() == 1
    assert rows(tmp_path)["tools"]["missing"] == "nvcc, ninja"


@pytest.fixture
def digits(step, monkeypatch):
    """run_digits.py with commands that are only noted; those of `fails` raise."""
    run = step("run_digits", "--rehearse")
    run.started, run.fails = [], set()

    def train(report, name, *more):
        run.started.append((name, *more))
        if name in run.fails:
            raise RuntimeError(f"{name} has no such operator")
        Path(name).mkdir(exist_ok=True)
        return 1.0

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run, "differing", lambda *runs: [])
    monkeypatch.setattr(
        "dfkd_fast.training.records.run_record.read_run_record", lambda path: dict.fromkeys(RECORD, 0.5)
    )
    return run


RECORD = ("top1_last", "teacher_top1")


@pytest.mark.parametrize(
    ("fails", "expected"),
    [
        ("whole", {"ordinary": "ok", "deterministic": "FAILED"}),
        ("pieces", {"ordinary": "ok", "deterministic": "ok", "resumed": "FAILED"}),
        ("free", {"ordinary": "FAILED", "deterministic": "ok", "resumed": "ok"}),
    ],
)
def test_a_run_that_fails_does_not_keep_the_others(digits, tmp_path, fails, expected):
    digits.fails = {fails}
    assert digits.main() == 1
    found = rows(tmp_path)
    assert {name: row["result"] for name, row in found.items()} == expected
    failed = next(row for row in found.values() if row["result"] == "FAILED")
    assert failed["error"] == f"RuntimeError: {fails} has no such operator"


def test_the_ordinary_run_comes_first_and_is_resumed(digits, tmp_path):
    assert digits.main() == 0
    assert [name for name, *_ in digits.started] == ["free", "free", "whole", "pieces", "pieces"]
    assert all(
        ("--deterministic" in more) == (name != "free") for name, *more in digits.started if "--resume" not in more
    )
    assert [more for name, *more in digits.started if "--resume" in more] == [["--resume"]] * 2
    digits.started.clear()
    os.chdir(tmp_path)
    sys.argv.append("--resume")
    assert digits.main() == 0
    assert not digits.started


def test_what_builds_or_installs_is_left_out_on_the_card(step):
    """One such file takes all of the step's time, and no test of a kernel would be run."""
    flags = step("kernel_tests").without_host_tests()
    host = re.compile(r"""["'](venv|pip|setup\.py|objdump)["']|bench/gpu|triton_resources""")
    for path in sorted((ROOT / "tests/kernels").glob("test_*.py")):
        found = host.search(path.read_text())
        assert bool(found) == any(f"={path.relative_to(ROOT)}" in flag for flag in flags), (path.name, found)


def test_rows_that_are_there_are_not_measured_again(monkeypatch, tmp_path):
    """bench/kernels --resume: a step that was cut goes on behind its rows."""
    spec = importlib.util.spec_from_file_location("bench_report", ROOT / "bench/kernels/report.py")
    report = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_report", report)
    spec.loader.exec_module(report)
    device = report.torch.device("cpu")
    assert report.measured(device, tmp_path) == set()
    row = report.Row(name="kd_kl", shape=(2, 3), dtype="float32", seconds={"ours": [1.0]})
    report.append([row], device, tmp_path, "bench_kd_kl.py::bench_loss[a]")
    with (tmp_path / "kernels-cpu.jsonl").open("a") as file:
        file.write('{"row": "kd')
    assert report.measured(device, tmp_path) == {"bench_kd_kl.py::bench_loss[a]"}
