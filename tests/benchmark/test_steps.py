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
    variants = ("--variants", "fp32", "bf16+cached")
    sys.argv[1:] = ["nayer-wrn40_2-wrn16_1-32", "--turns", "2", *variants, "--results", sys.argv[1]]
    run.main()
"""


def test_every_side_takes_its_turns(tmp_path: Path) -> None:
    script, results = tmp_path / "small.py", tmp_path / "steps.jsonl"
    script.write_text(SMALL)
    folders = [str(STEPS), str(STEPS.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, str(script), str(results)]
    out = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    autocast = "released-style, bf16 autocast, channels-last"
    assert [(row["variant"], row["phase"], row["goal"]) for row in rows] == [
        (autocast, "synthesis", None),
        (autocast, "student", None),
        ("fp32", "synthesis", 2.4),
        ("fp32", "student", 2.3),
        ("bf16+cached", "student", 15.0),
    ]
    for row in rows:
        assert len(row["samples"]) == len(row["baseline_samples"]) == 2
        assert row["met"] == (None if row["goal"] is None else row["ratio"] >= row["goal"])
        assert min(row["samples"]) <= row["seconds"] <= max(row["samples"])
    (short,) = (line for line in out.splitlines() if line.startswith("falls short: "))
    for row in rows:
        assert (f"{row['variant']}, {row['phase']}: " in short) == (row["met"] is False)
