"""The comparison of frozen networks runs, and goes on where it was: the code of `make bench SUITE=frozen`, tiny."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"

SMALL = """
import sys
from torch import nn
import networks

def build(name):
    if name == "broken":
        raise RuntimeError("no such weights\\nand more")
    norm = nn.BatchNorm2d(4) if name == "normed" else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

networks.build = build
if __name__ == "__main__":
    import run
    names, options = ["normed", "bare", "broken"], ["--dtypes", "fp32", "--seconds", "0", *sys.argv[1:]]
    for sys.argv[1:] in ([*names, *options], [*names, *options]):
        run.main()
"""


def test_a_line_for_each_network_and_none_twice(tmp_path: Path) -> None:
    script, results = tmp_path / "small.py", tmp_path / "lines.jsonl"
    script.write_text(SMALL)
    results.write_text('{"network": "normed", "dty\n')  # what a cut leaves
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(BENCH / "frozen"), os.environ.get("PYTHONPATH", "")])
    }
    command = [sys.executable, str(script), "--results", str(results), "--cache", str(tmp_path / "cache")]
    printed = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    lines = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    # the second run tries again what failed
    assert [line["network"] for line in lines] == ["normed", "bare", "broken", "broken"]
    assert [line["batchnorms"] for line in lines[:2]] == [1, 0]
    assert lines[2]["error"] == "RuntimeError: no such weights"
    for line in lines[:2]:
        assert set(line["ratios"]) == {"hooks / ours", "ours / without"}
        assert set(line["seconds"]) == set(line["samples"]) == {"ours", "without", "hooks"}
        assert line["threads"] == 1
    assert printed.count("| normed | 1 |") == 2
    assert "fp32: 2 networks, 0 of them compiled" in printed


def test_the_document_shows_the_committed_lines(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH / "frozen"))
    import run
    import table
    from networks import DTYPES, NETWORKS

    lines = {key: line for key, line in table.read(run.RESULTS).items() if "error" not in line}
    page = run.DOCUMENT.read_text()
    assert lines
    ordered = [lines[name, dtype] for name in NETWORKS for dtype in DTYPES if (name, dtype) in lines]
    assert len(ordered) == len(lines)
    assert table.document(page, ordered) == page, "make it anew: python bench/frozen/run.py --docs"


def test_what_falls_short_is_named(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH / "frozen"))
    import table

    def line(network: str, hooks: float, compiled: float, cost: float) -> dict:
        ratios = {"hooks / ours": hooks, "compiled / ours": compiled, "ours / without": cost}
        return {"network": network, "dtype": "fp32", "ratios": ratios}

    assert table.shortfalls([line("a", 2.0, 1.0, 1.1), line("b", 1.5, 1.4, 1.25)][:1]) == []
    assert table.shortfalls([line("a", 2.0, 0.9, 1.0), line("b", 3.0, 2.0, 1.26), line("c", 3.0, 2.0, 1.2)]) == [
        "a fp32: 0.90 of the best baseline's time / ours, asked for 1",
        "b fp32: 1.26 times the network without the loss, asked for at most 1.25",
        "median of 3, fp32: 1.20 times without the loss, asked for 1.1",
    ]
