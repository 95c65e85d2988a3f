"""The measurement of growth runs: the same code as `make bench SUITE=scaling` on next to nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"

SCRIPT = """
import json, sys
from dataclasses import replace
import axes, growth, pool_cost, run, steps

grown = {}
for name, power in (("linear", 1), ("square", 2)):
    for axis in ("classes", "batch", "processes"):
        lines = [
            {"value": point.value, "flops": {phase: 1e6 * point.value for phase in growth.PHASES},
             "seconds": {phase: 1e-3 * point.value ** power for phase in growth.PHASES}}
            for point in axes.AXES[axis].points
        ]
        grown[f"{axis} {name}"] = growth.verdicts(axis, axes.AXES[axis], lines)
        assert not growth.verdicts(axis, axes.AXES[axis], lines[:-1])
print(json.dumps(grown))

axis = axes.AXES["classes-priority"]
points = tuple(replace(axis.points[0], num_classes=value, value=value, batch_size=8) for value in (10, 12, 14))
axes.AXES.clear()
axes.AXES["classes-priority"] = replace(axis, points=points)
run.measure, run.COUNTS, run.COLD, pool_cost.BATCHES = steps.profile, (300, 600), 600, 1
sys.argv[1:] = ["--samples", "1", "--rounds", "1", "--batches", "2", "--results", sys.argv[1], "--picture", sys.argv[2]]
sys.argv += ["classes-priority", "pool", "pool-cold"]
run.main()
print("once more")
run.measure = pool_cost.warm = pool_cost.cold = None  # nothing is left to measure
run.main()
"""


def test_every_part_is_measured_once_and_held_against_its_line(tmp_path: Path) -> None:
    """Lines, verdicts and a picture; started again, it measures nothing and says the same of what is there."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install dfkd-fast[dev])")
    results, picture = tmp_path / "scaling.jsonl", tmp_path / "scaling.png"
    folders = [str(BENCH / "scaling"), str(BENCH / "pool"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(results), str(picture)]
    out = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    grown, out = out.split("\n", 1)
    check_growth(json.loads(grown))
    check_lines([json.loads(line) for line in results.read_text().splitlines()])
    assert picture.stat().st_size > 10_000
    first, again = ([line for line in part.splitlines() if "at most" in line] for part in out.split("once more\n"))
    assert len(first) == 3  # both phases and the pool
    assert first == again


def check_growth(grown: dict[str, list[str]]) -> None:
    """Seconds in proportion to what is expected keep to the line, their square does not; processes share their work."""
    assert len(grown) == 6
    for name, lines in grown.items():
        missed = name.endswith("square") or name.startswith("processes")
        assert [("MISSED" in line) == missed for line in lines] == [True, True], (name, lines)


def check_lines(lines: list[dict[str, Any]]) -> None:
    """One for each point, and no second one."""
    steps = [line for line in lines if line["axis"] == "classes-priority"]
    assert [line["value"] for line in steps] == [10, 12, 14]
    for line in steps:
        assert min(line["seconds"]["synthesis"], line["seconds"]["student"]) > 0
        assert line["peak_memory_bytes"] > 1e8
    assert [line["flops"]["student"] for line in steps] == sorted({line["flops"]["student"] for line in steps})
    pool = [(line["method"], line["value"]) for line in lines if line["axis"] == "pool"]
    assert len(pool) == len(set(pool)) == 10
    assert {value for _, value in pool} == {300, 600}
    (cold,) = (line for line in lines if line["axis"] == "pool-cold")
    assert cold["bytes_of_a_batch"] == 256 * 32 * 32 * 3
