"""`make bench SUITE=profile` on next to nothing: a table and a trace of each phase."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "profile_steps.py"
TINY = [
    *("nayer/cifar10", "--precision", "fp32", "--steps", "1", "--rows", "5", "--teacher", "cnn", "--student", "cnn_s"),
    *("--synthesis-batch-size", "8", "--batch-size", "8", "--generator-width", "8", "--noise-features", "16"),
]


def test_writes_tables_and_traces(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *TINY, "--results", str(tmp_path)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    folder = tmp_path / "profile-cpu"
    lines = (folder / "table.txt").read_text().splitlines()
    assert set(lines) <= set(out.splitlines())
    for phase in ("synthesis", "distillation"):
        start = next(index for index, line in enumerate(lines) if line.startswith(phase))
        end = lines.index("by operator:", start)
        shares = [float(line.split("%")[0].split()[-1]) for line in lines[start + 2 : end]]
        assert sum(shares) == pytest.approx(100, abs=1)
        with gzip.open(folder / f"{phase}.json.gz", "rt") as trace:
            assert json.load(trace)["traceEvents"]
    assert any("convolution" in line for line in lines)
