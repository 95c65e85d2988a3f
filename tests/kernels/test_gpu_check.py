"""bench/gpu_check.py: rehearsed whole on the CPU, with no packages but those that its docstring names; a step that
fails or is slow is recorded and does not stop the next.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILE = ROOT / "bench/gpu_check.py"
STEPS = ["machine", "build", "kernels", "replay", "train", "pool", "methods", "rates", "race", "ranks", "bandwidth"]
STEPS += ["networks"]


@pytest.fixture
def tool(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("gpu_check", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the steps' folder is put there
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("OUT_DIR", str(tmp_path))
    return module


ROW = {"row": "kd_kl", "shape": [2, 3], "dtype": "float32", "ratios": {"a / b": {"value": 1.5}}, "numbers": {"GB/s": 7}}
MEASURED = f"""
import json, os
open(os.environ["OUT_DIR"] + "/kernels-x.jsonl", "w").write(json.dumps({ROW}))
print("1 passed")
"""


def python(code):
    return [sys.executable, "-c", code]


def planned(tool, monkeypatch, *steps):
    monkeypatch.setattr(tool, "steps", lambda out, **_: list(steps))


def records(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_every_step_is_recorded(tool, monkeypatch, tmp_path, capsys):
    planned(
        tool,
        monkeypatch,
        tool.Step("kernels", python("print('FAILED one test'); raise SystemExit(1)"), 60),
        tool.Step("slow", python("import time; print('started', flush=True); time.sleep(60)"), 2),
        tool.Step("bandwidth", python(MEASURED), 60),
    )
    assert tool.main([]) == 1
    found = records(tmp_path)
    assert [record["status"] for record in found] == ["failed: exit status 1", "failed: over 2 s", "passed"]
    assert [record["last"] for record in found] == ["FAILED one test", "started", "1 passed"]
    table = capsys.readouterr().out
    row = "kd_kl 2x3 float32: a / b 1.5, GB/s 7"
    assert table.index("FAILED one test") < table.index(row) < table.index("bandwidth  ")


def test_a_step_is_cut_with_what_it_started(tool, tmp_path):
    """A worker that outlived its step would hold the card, and the time of the next."""
    code = "import subprocess, sys, time; sleep = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
    code += "print(subprocess.Popen(sleep).pid, flush=True); time.sleep(60)"
    outcome = tool.run(tool.Step("parent", python(code), 3), tmp_path, 3)
    assert outcome.status == "failed: over 3 s"
    child, deadline = Path("/proc") / outcome.last, time.monotonic() + 10
    while child.exists() and "State:\tZ" not in (child / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or "State:\tZ" in (child / "status").read_text()


def test_only_and_resume(tool, monkeypatch, tmp_path, capsys):
    mark = tmp_path / "mark"
    fails_once = (
        f"import pathlib; p = pathlib.Path({str(mark)!r}); done = p.exists(); p.touch(); raise SystemExit(not done)"
    )
    planned(
        tool, monkeypatch, tool.Step("machine", python("print('here')"), 60), tool.Step("train", python(fails_once), 60)
    )
    assert tool.main(["--only", "machine"]) == 0
    assert [record["step"] for record in records(tmp_path)] == ["machine"]
    assert tool.main(["--resume"]) == 1
    assert tool.main(["--resume"]) == 0
    assert [record["step"] for record in records(tmp_path)] == ["machine", "train", "train"]
    assert "passed before: machine" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tool.main(["--only", "nothing"])


def test_packages_taken_along_are_found_by_the_steps(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "PACKAGES", tmp_path)
    assert not tool.has("taken_along")
    (tmp_path / "taken_along.py").write_text("NAME = 'here'")
    assert tool.has("taken_along")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ninja").write_text("#!/bin/sh\necho ninja")
    (tmp_path / "bin/ninja").chmod(0o755)
    code = "import subprocess, taken_along as t; print(t.NAME, subprocess.check_output('ninja', text=True))"
    assert tool.run(tool.Step("import", python(code), 60), tmp_path, 60).last == "here ninja"


def test_tests_run_without_the_plugin_that_pyproject_configures(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "has", lambda package: False)
    command = next(step.command for step in tool.steps(tmp_path) if step.name == "kernels")
    command[command.index("tests/kernels")] = (
        "tests/kernels/test_kd_kl.py"  # one file says whether settings are refused
    )
    collect = [*command, "-p", "no:timeout", "-p", "no:xdist", "--collect-only", "-k", "test_cuda_graph"]
    outcome = tool.run(tool.Step("collect", collect, 100), tmp_path, 100)
    assert outcome.status == "passed", outcome


def test_no_step_starts_after_the_deadline(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tool, "DEADLINE", 0.0)
    planned(tool, monkeypatch, tool.Step("build", python("raise SystemExit(3)"), 60))
    assert tool.main([]) == 1
    assert "not run: no time left" in capsys.readouterr().out
    assert not (tmp_path / "build.log").exists()


@pytest.mark.parametrize("rehearse", [False, True])
def test_the_plan_fits_its_deadline_and_names_files_that_exist(tool, tmp_path, rehearse):
    steps = tool.steps(tmp_path, rehearse=rehearse)
    assert [step.name for step in steps] == STEPS
    assert sum(step.seconds for step in steps) <= tool.DEADLINE == 540
    assert set(tool.without_host_tests()) < {*steps[STEPS.index("kernels")].command}
    for step in steps:
        assert re.search(rf"^    {step.name} +\w", tool.__doc__, flags=re.MULTILINE), step.name
        for word in step.command[1:]:
            path, _, part = re.sub("^--(ignore|deselect)=", "", word).partition("::")
            if path.startswith(("bench/", "tests/")):
                assert (ROOT / path).exists(), path
                assert not part or part in (ROOT / path).read_text(), word


CUT = """
import os, pathlib, pytest, time

@pytest.mark.parametrize("x", ["a b"])
def test_wrong(x):
    assert x == 1

def test_cut():
    while "FAILED" not in pathlib.Path(os.environ["OUT_DIR"], "kernels.log").read_text():
        time.sleep(0.1)
    os.killpg(0, 9)
"""


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "workers"])
def test_failures_seen_before_a_cut_are_in_the_table(tool, monkeypatch, tmp_path, capsys, workers):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q\n")
    (tmp_path / "test_it.py").write_text(CUT)
    command = next(step.command for step in tool.steps(tmp_path) if step.name == "kernels")
    command = [*command[: command.index("pytest") + 2], *workers, "-p", "no:cacheprovider", str(tmp_path)]
    planned(tool, monkeypatch, tool.Step("kernels", command, 100))
    assert tool.main([]) == 1
    (record,) = records(tmp_path)
    assert record["status"] == "failed: exit status -9"
    (failure,) = record["failures"]
    assert failure.endswith("test_it.py::test_wrong[a b]")
    assert f"kernels: FAILED {failure}"[:160] in capsys.readouterr().out


def test_torn_lines_are_left_out_and_none_is_written_behind_them(tool, monkeypatch, tmp_path, capsys):
    """A machine that is taken away leaves half a line; neither the table nor --resume may end by it."""
    planned(tool, monkeypatch, tool.Step("bandwidth", python("pass"), 60), tool.Step("train", python("pass"), 60))
    (tmp_path / "steps.jsonl").write_text('{"step": "bandwidth", "status": "passed"}\n{"step": "tr')
    (tmp_path / "rows.jsonl").write_text('{"step": "train", "row": "whole", "result": "ok"}\n[1]\n{"step": "tr')
    (tmp_path / "kernels-x.jsonl").write_text(json.dumps(ROW)[:40])
    assert tool.main(["--resume"]) == 0
    assert "train: whole: ok" in capsys.readouterr().out
    assert tool.passed(tmp_path) == {"bandwidth", "train"}


def named_packages(doc: str) -> tuple[list[str], list[str]]:
    """The docstring's two lists: what the machine has, and what is taken along."""
    indented = re.findall(r"\n\n((?:    .+\n)+)", doc)
    return indented[1].split(), indented[2].split()


def test_what_is_taken_along_is_what_make_takes(tool):
    command = re.search(r"^gpu-packages:\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE).group(1)
    taken = re.sub(r"[<>=\"\\]+[\d.]*", " ", command.partition("manylinux2014_x86_64")[2]).split()
    assert taken == named_packages(tool.__doc__)[1]


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """A virtual environment with links to the packages that the docstring names, and to what pip brings with them."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    there, taken = named_packages(FILE.read_text())
    wanted, seen = list(there), set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
    for name in (*seen, *taken):
        distribution = importlib.metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    return folder / "bin/python"


def test_the_bare_environment_is_bare(bare_python):
    names = ("tyro", "torch", "mypy", "matplotlib", "dfkd_fast")
    code = f"import importlib.util as u; print([name for name in {names} if u.find_spec(name)])"
    found = subprocess.run([bare_python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['tyro', 'torch']"


def test_rehearsal_with_only_the_packages_that_the_docstring_names(bare_python, tmp_path):
    """Every step, tiny, everything but the card; each row and each log is there."""
    environment = {**os.environ, "OUT_DIR": str(tmp_path), "PYTHONPATH": "", "MAKEFLAGS": ""}
    command = [str(bare_python), str(FILE), "--rehearse"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(tmp_path.glob("*.log")))
    assert result.returncode == 0, result.stdout + logs
    assert [(record["step"], record["status"]) for record in records(tmp_path)] == [(step, "passed") for step in STEPS]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {"machine", "replay", "train", "pool", "rates", "race", "ranks"}
    found = {(row["step"], row["row"]): row["result"] for row in rows}
    assert found["machine", "card"] == found["pool", "bandwidth"] == "not run"
    assert (
        found["train", "ordinary"]
        == found["train", "resumed"]
        == found["replay", "nayer"]
        == found["ranks", "gloo"]
        == "ok"
    )
    assert found["pool", "dali stream"] == "not run", "the docstring does not name DALI"
    assert len((tmp_path / "methods-cpu.jsonl").read_text().splitlines()) == 2
