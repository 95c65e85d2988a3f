"""The measurements run: the same code as `make bench SUITE=pool` on next to nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "pool"

SMALL = """
import sys
from pathlib import Path

import pytest
import adding, report, sizes, streams
folder = Path(sys.argv[1])
streams.IMAGES, streams.BATCHES = {8: 300}, {8: dict.fromkeys(("kernel", "dali", "torch", "png"), 1)}
streams.GOALS = {8: {"ratio": 1}}
report.append("streams", streams.measure(8, 1), folder)
figures = sizes.measure([10_000, 11_000], 1, folder)
report.append("sizes", figures, folder)
sizes.plot(figures, folder / "pool-sizes.png")
report.append("adding", adding.measure(1, folder), folder)
"""


def test_every_part_writes_its_figures(tmp_path: Path) -> None:
    for package in ("nvidia.dali", "matplotlib"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install dfkd-fast[dev])")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", SMALL, str(tmp_path)], check=True, env=environment, capture_output=True)
    rows = {
        file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in tmp_path.glob("*.jsonl")
    }
    assert {name: len(figures) for name, figures in rows.items()} == {
        "pool-streams": 5,
        "pool-sizes": 13,
        "pool-adding": 4,
    }
    for figure in rows["pool-streams"]:
        assert figure["value"] > 0
        assert (figure["met"] is None) == (figure["bound"] is None)
    assert (tmp_path / "pool-sizes.png").stat().st_size > 10_000
