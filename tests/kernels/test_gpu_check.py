"""bench/gpu_check.py: a failing or slow step is recorded and does not stop the next. What it runs needs a GPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "bench/gpu_check.py"


@pytest.fixture
def tool(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("gpu_check", FILE)
    module = importlib.util.module_from_spec(spec)
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


def test_every_step_is_recorded(tool, monkeypatch, tmp_path, capsys):
    planned = [
        tool.Step("capture", python("print('FAILED one test'); raise SystemExit(1)"), 60),
        tool.Step("slow", python("import time; print('started', flush=True); time.sleep(60)"), 2),
        tool.Step("bench", python(MEASURED), 60),
    ]
    monkeypatch.setattr(tool, "steps", lambda out: planned)
    assert tool.main() == 1
    records = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["failed: exit status 1", "failed: over 2 s", "passed"]
    assert [record["last"] for record in records] == ["FAILED one test", "started", "1 passed"]
    table = capsys.readouterr().out
    row = "kd_kl 2x3 float32: a / b 1.5, GB/s 7"
    assert table.index("FAILED one test") < table.index(row) < table.index("bench  ")


def test_packages_taken_along_are_found_by_the_steps(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "PACKAGES", tmp_path)
    assert not tool.has("taken_along")
    (tmp_path / "taken_along.py").write_text("NAME = 'here'")
    assert tool.has("taken_along")
    step = tool.Step("import", python("import taken_along; print(taken_along.NAME)"), 60)
    assert tool.run(step, tmp_path, 60).last == "here"


def test_tests_run_without_the_plugin_that_pyproject_configures(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "has", lambda package: False)
    command = next(step.command for step in tool.steps(tmp_path) if step.name == "capture")
    collect = [*command, "-p", "no:timeout", "-p", "no:xdist", "--collect-only", "-k", "test_cuda_graph"]
    outcome = tool.run(tool.Step("collect", collect, 100), tmp_path, 100)
    assert outcome.status == "passed", outcome


def test_no_step_starts_after_the_deadline(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tool, "DEADLINE", 0.0)
    monkeypatch.setattr(tool, "steps", lambda out: [tool.Step("build", python("raise SystemExit(3)"), 60)])
    assert tool.main() == 1
    assert "not run: no time left" in capsys.readouterr().out
    assert not (tmp_path / "build.log").exists()


def test_the_plan_fits_its_deadline_and_names_files_that_exist(tool, tmp_path):
    steps = tool.steps(tmp_path)
    assert [step.name for step in steps] == ["machine", "build", "capture", "replay", "tests", "networks", "bench"]
    for step in steps:
        for word in step.command[1:]:
            path = word.removeprefix("--ignore=")
            if path.startswith(("bench/", "tests/")):
                assert (FILE.parents[1] / path).exists(), path
