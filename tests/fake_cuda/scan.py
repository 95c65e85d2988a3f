"""Scan runs on a card that is not there: `python tests/fake_cuda/scan.py nayer fast --precision fp16 --ranks 2`.

A JSON line for each: what the card would have refused or waited for, and the kernels and bytes of each captured step.
"""

from __future__ import annotations

import guard

guard.load_guard()  # before torch, which the others import

import argparse  # noqa: E402
import gc  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import asdict  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "bench/kernels"))

import launch_table  # noqa: E402
import torch  # noqa: E402
from watch import Finding, Watch  # noqa: E402
from whole_runs import SMALL, Case, run  # noqa: E402

from dfkd_fast.catalog import METHODS  # noqa: E402

WAITS = {
    "dfkd_fast/training/checkpoints/checkpoint.py: _plain",
    "dfkd_fast/training/evaluate.py: evaluate",
    "dfkd_fast/training/failures.py: check_finite",
    "dfkd_fast/training/loop.py: Loop._boundary",
    "dfkd_fast/training/loop.py: Loop.figures",
    "dfkd_fast/training/inner.py: InnerLoop.taken",
    "dfkd_fast/reporting/meters.py: Meter.read",
    "dfkd_fast/pool/pool.py: Pool.flush",
    "dfkd_fast/pool/quantize.py: to_bytes",
    "dfkd_fast/pool/disk/writer.py: on_host",
    "dfkd_fast/methods/cpnet/losses.py: bounded_inverse",
}
"""where the host may wait for the device: at the end of a round or a phase, for a line of the log, or once, before the
first step, for a decomposition
"""


def scan(case: Case, folder: Path, plant: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """One run: its findings, kernels and bytes by step, and the error that ended it, if one did."""
    watch, error, start = Watch(), "", time.process_time()
    try:
        run(case, watch, folder, plant=plant)
    except Exception as caught:
        traceback.print_exc()
        frames = [frame for frame in traceback.extract_tb(caught.__traceback__) if "/dfkd_" in frame.filename]
        last = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        error = f"{type(caught).__name__}: {str(caught)[:300]}{last}"
    return {
        "case": asdict(case),
        "error": error,
        "findings": sorted([*found, count] for found, count in watch.findings.items() if not allowed(found)),
        "kernels": {step: dict(counts.most_common()) for step, counts in watch.kernels.items()},
        "bytes": dict(watch.bytes),
        "seconds": round(time.process_time() - start, 1),
    }


def prepare() -> None:
    """Before the first run of a process: import what it would, and keep all that out of each collection of garbage."""
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")
    gc.collect()
    gc.freeze()


def allowed(found: Finding) -> bool:
    """Outside of steps the host waits where a phase or a round ends, and nowhere else."""
    return not found.where and found.kind in ("host sync", "host copy") and found.site in WAITS


def write_table(file: Path, runs: list[dict[str, Any]], small: list[dict[str, Any]]) -> None:
    """Write the runs' launches and bytes into the table; what else stands in the file stays."""
    known = launch_table.read(file)
    parts = _part(runs, known, "precision", "teacher", "student")
    few = _part(small, known.get("small", {}), "precision", "ranks", "teacher", "student")
    launch_table.update(file, torch=torch.__version__.partition("+")[0], **parts, small=few)


def _part(runs: list[dict[str, Any]], known: dict[str, Any], *names: str) -> dict[str, Any]:
    steps = {run["case"]["method"]: _rows(run) for run in runs}
    return {name: runs[0]["case"][name] for name in names} | {"steps": known.get("steps", {}) | steps}


def _rows(run: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        step: {"bound": sum(kernels.values()), "gigabytes": round(run["bytes"][step] / 1e9, 2)}
        for step, kernels in run["kernels"].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--teacher", default="wrn40_2")
    parser.add_argument("--student", default="wrn16_2")
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--bn-scope", default="rank")
    parser.add_argument("--table", type=Path, help="write launches and bytes into this file, those of SMALL, too")
    options = vars(parser.parse_args())
    methods, table = options.pop("methods"), options.pop("table")
    cases = [Case(method=method, **options) for method in methods]
    small = [Case(method=method, **SMALL) for method in methods] if table is not None else []
    runs = []
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        for case in cases + small:
            runs.append(scan(case, Path(folder)))
            print(json.dumps(runs[-1]), flush=True)
    broken = [run["case"]["method"] for run in runs if run["error"] or run["findings"]]
    if broken:
        sys.exit(f"the scan found something in {', '.join(broken)}")
    if table is not None:
        write_table(table, runs[: len(cases)], runs[len(cases) :])


if __name__ == "__main__":
    main()
