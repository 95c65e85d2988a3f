"""The comparison of steps runs: the same code as `make bench SUITE=steps` on next to nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

STEPS = Path(__file__).parents[2] / "bench" / "steps"

SMALL = """
import sys
import cases
from dataclasses import replace
case = cases.CASES["nayer-wrn40_2-wrn16_1-32"]
flags = ("--teacher", "cnn", "--student", "cnn_s", "--synthesis-batch-size", "8", "--batch-size", "8")
small = replace(case, flags=(*flags, "--generator-width", "8", "--noise-features", "16"))
cases.CASES["nayer-wrn40_2-wrn16_1-32"] = small
if __name__ == "__main__":
    import run
    sys.argv[1:] = ["nayer-wrn40_2-wrn16_1-32", "--turns", "2", "--variants", "fp32", "--results", sys.argv[1]]
    run.main()
"""


def test_every_side_takes_its_turns(tmp_path: Path) -> None:
    script, results = tmp_path / "small.py", tmp_path / "steps.jsonl"
    script.write_text(SMALL)
    folders = [str(STEPS), str(STEPS.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    subprocess.run([sys.executable, str(script), str(results)], check=True, env=environment, capture_output=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(row["variant"], row["phase"]) for row in rows] == [("fp32", "synthesis"), ("fp32", "student")]
    for row, goal in zip(rows, (1.8, 1.5), strict=True):
        assert len(row["samples"]) == len(row["baseline_samples"]) == 2
        assert row["goal"] == goal
        assert row["met"] == (row["ratio"] >= goal)
        assert min(row["samples"]) <= row["seconds"] <= max(row["samples"])
