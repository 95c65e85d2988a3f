"""`make bench SUITE=dry-run`: does `--dry-run` foretell what a run then takes?

Runs `dfkd-fast train ... --dry-run` and the run itself, one after the other, each in a process of its own, and compares
the seconds of both phases; on an idle machine they should be within 15 %. A line goes to
bench/results/dry-run-<device>.jsonl, with the load of the machine: on a busy one the figures say little. Arguments are
those of `dfkd-fast train`; without any, NAYER on digits for about five minutes of a core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
DEFAULT = ("nayer", "--preset", "digits", "--epochs", "31", "--threads", "1")
WITHIN = 0.15


def foretell(arguments: list[str]) -> dict[str, Any]:
    """What `--dry-run` projects, and where."""
    from dfkd_fast.benchmark.dry_run import dry_run
    from dfkd_fast.cli.train import read_arguments
    from dfkd_fast.training.assemble import runtime_of
    from dfkd_fast.training.records.run_record import machine_record

    config, _ = read_arguments(arguments)
    return {**dry_run(config).record(), "machine": machine_record(runtime_of(config))}


def spend(arguments: list[str], folder: Path) -> dict[str, Any]:
    """The run's own record."""
    from dfkd_fast.training.records.run_record import read_run_record

    run = folder / "run"
    subprocess.run([sys.executable, "-m", "dfkd_fast", "train", *arguments, "--run-dir", str(run)], check=True)
    return read_run_record(run / "run.json")


def compare(arguments: list[str], projected: dict[str, Any], spent: dict[str, Any]) -> dict[str, Any]:
    """Seconds by phase and in all, projected and spent; `ratio` is projected to spent."""
    seconds = {
        phase: {"projected": projected[phase]["seconds"], "spent": spent[f"{phase}_seconds"]}
        for phase in ("synthesis", "distillation")
    }
    seconds["both"] = {key: sum(part[key] for part in seconds.values()) for key in ("projected", "spent")}
    ratio = seconds["both"]["projected"] / seconds["both"]["spent"]
    return {
        "command": " ".join(("dfkd-fast train", *arguments)),
        "seconds": seconds,
        "projected_least": 3600 * projected["hours_least"],
        "projected_most": 3600 * projected["hours_most"],
        "ratio": ratio,
        "met": abs(ratio - 1) <= WITHIN,
        "evaluation_seconds": spent["evaluation_seconds"],
    }


def main() -> int:
    """Foretell, run, compare; the exit status is 1 where they are further apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options, arguments = parser.parse_known_args()
    arguments = arguments or list(DEFAULT)
    before = os.getloadavg()[0]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        projected = pool.apply(foretell, (arguments,))
    with tempfile.TemporaryDirectory(prefix="dfkd-fast-") as folder:
        spent = spend(arguments, Path(folder))
    line = compare(arguments, projected, spent)
    line |= {"load_before": before, "load_after": os.getloadavg()[0], "cores": os.cpu_count(), **projected["machine"]}
    device = "cpu" if line["device"].startswith("CPU") else line["device"].lower().replace(" ", "-")
    options.results.mkdir(parents=True, exist_ok=True)
    with (options.results / f"dry-run-{device}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    for phase, both in line["seconds"].items():
        print(f"{phase:13} projected {both['projected']:8.1f} s  spent {both['spent']:8.1f} s")
    print(f"ratio {line['ratio']:.3f} (within {WITHIN:.0%}: {'met' if line['met'] else 'MISSED'}), load {before:.1f}")
    return 0 if line["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
