"""`make bench SUITE=dry-run`: does `--dry-run` predict what a run then takes?

Runs `dfkd-fast train ... --dry-run` and the run itself, one after the other, each in a process of its own, and compares
the seconds of both phases: on a CPU processor time of the thread that runs the steps, which is what an idle machine
takes by the wall, on a GPU time by the wall. They should be within 10 % on an idle machine and within 15 % on a busy
one. A line for each goes to bench/results/dry-run-<device>.jsonl, with the load of the machine and with how much longer
the run took by the wall. Arguments are those of `dfkd-fast train`; without any, three methods on digits, under a minute
of a core each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
SHORT = ("--preset", "digits", "--threads", "1")
NAYER = ("--student-mode", "released", "--warmup-epochs", "2", "--warmup-rounds", "2", "--student-steps", "150")
DEFAULT = (
    ("nayer", *SHORT, *NAYER, "--epochs", "6"),
    ("ssdkd", *SHORT, "--epochs", "12", "--warmup-epochs", "4", "--student-steps", "75"),
    ("dafl", *SHORT, "--epochs", "6"),
)
"""with a pool, with a pool that is read by priority, without a pool"""
WITHIN, WITHIN_BUSY = 0.10, 0.15
MOST_SLOWER = 1.1
"""seconds by the wall to processor seconds of a run that had its core to itself"""


def predict(arguments: Sequence[str]) -> dict[str, Any]:
    """What `--dry-run` projects, and where."""
    from dfkd_fast.benchmark.dry_run import dry_run
    from dfkd_fast.cli.train import read_arguments
    from dfkd_fast.training.assemble import runtime_of
    from dfkd_fast.training.records.run_record import machine_record

    config, _ = read_arguments(list(arguments))
    return {**dry_run(config).record(), "machine": machine_record(runtime_of(config))}


def spend(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """The run's own record."""
    from dfkd_fast.training.records.run_record import read_run_record

    run = folder / "run"
    subprocess.run([sys.executable, "-m", "dfkd_fast", "train", *arguments, "--run-dir", str(run)], check=True)
    return read_run_record(run / "run.json")


def compare(arguments: Sequence[str], projected: dict[str, Any], spent: dict[str, Any]) -> dict[str, Any]:
    """Seconds by phase and in all, projected and spent; `ratio` is projected to spent."""
    clock = "processor_seconds" if projected["machine"]["device"].startswith("CPU") else "seconds"
    seconds, wall = {}, 0.0
    for phase in ("synthesis", "distillation"):
        seconds[phase] = {"projected": projected[phase]["seconds"], "spent": spent[f"{phase}_{clock}"]}
        wall += spent[f"{phase}_seconds"]
    seconds["both"] = {key: sum(part[key] for part in seconds.values()) for key in ("projected", "spent")}
    ratio, slowdown = seconds["both"]["projected"] / seconds["both"]["spent"], wall / seconds["both"]["spent"]
    within = WITHIN_BUSY if slowdown > MOST_SLOWER else WITHIN
    return {
        "command": " ".join(("dfkd-fast train", *arguments)),
        "clock": clock,
        "seconds": seconds,
        "projected_least": 3600 * projected["hours_least"],
        "projected_most": 3600 * projected["hours_most"],
        "ratio": ratio,
        "within": within,
        "met": abs(ratio - 1) <= within,
        "wall_seconds": wall,
        "slowdown": slowdown,
        "dry_run_slowdown": projected["timed_wall_seconds"] / projected["timed_seconds"],
        "evaluation_seconds": spent["evaluation_seconds"],
    }


def check(arguments: Sequence[str], results: Path) -> bool:
    """Foretell, run, compare; appends the line and says whether they are near enough to each other."""
    before = os.getloadavg()[0]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        projected = pool.apply(predict, (arguments,))
    with tempfile.TemporaryDirectory(prefix="dfkd-fast-") as folder:
        spent = spend(arguments, Path(folder))
    line = compare(arguments, projected, spent)
    line |= {"load_before": before, "load_after": os.getloadavg()[0], "cores": os.cpu_count(), **projected["machine"]}
    device = "cpu" if line["device"].startswith("CPU") else line["device"].lower().replace(" ", "-")
    results.mkdir(parents=True, exist_ok=True)
    with (results / f"dry-run-{device}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(line["command"])
    for phase, both in line["seconds"].items():
        print(f"  {phase:13} projected {both['projected']:8.1f} s  spent {both['spent']:8.1f} s")
    verdict = f"within {line['within']:.0%}: {'met' if line['met'] else 'MISSED'}"
    wall = f"load {before:.1f}, by the wall {line['slowdown']:.2f} times as long"
    print(f"  ratio {line['ratio']:.3f} ({verdict}), {wall}")
    return line["met"]


def main() -> int:
    """Check what is asked for; the exit status is 1 where one is further off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options, arguments = parser.parse_known_args()
    met = [check(each, options.results) for each in ([arguments] if arguments else DEFAULT)]
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
