"""`make bench SUITE=speedrun`: core-seconds until a data-free student has 70, 80 and 85 % on the real test images.

    python bench/speedrun/run.py --data DATA --teachers TEACHERS                # every entry, all seeds
    python bench/speedrun/run.py --data DATA --teachers TEACHERS --entries nayer --seeds 1 --minutes 5
    python bench/speedrun/run.py --docs                                         # the table in docs/speedrun.md

DATA and TEACHERS are, if they are not given, the folders cifar10 and teachers below $DFKD_TEST_DATA.

Each run is `dfkd-fast train` on one thread, evaluated after every epoch; its clock, the processor time of synthesis and
distillation, stands in its metrics.jsonl and stops while it is evaluated. A run that has passed --minutes is stopped,
and a greater limit takes it up there.
Ctrl-C stops behind a step; the same command goes on there. A finished run has a line in the results and is not
repeated. Before an entry's first run its first epoch is run once and thrown away.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from entry import Entry, names, read_entry
from table import curve_of, reached, table, write_table

from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.training.records.run_record import machine_record, read_run_record

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = (
    "--teacher resnet56 --teacher-weights TEACHERS/resnet56-4bfd9763.th --student resnet20 --num-classes 10 "
    "--image-size 32 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"
)


def main() -> int:
    """Make the runs that are missing; the exit status is 1 where one has failed."""
    options = _options()
    entries = [read_entry(name) for name in options.entries or names()]
    complete = True
    try:
        for entry in () if options.docs else entries:
            complete &= _runs_of(entry, options)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(text := table(entries, read_lines(options.results), options.minutes))
    if options.docs:
        write_table(options.page, text)
    return 0 if complete else 1


def _runs_of(entry: Entry, options: argparse.Namespace) -> bool:
    """All seeds of an entry, one after another; whether all are there."""
    complete = True
    for seed in range(options.seeds or entry.seeds):
        key = _key(entry, seed, options)
        if any(all(line[name] == value for name, value in key.items()) for line in read_lines(options.results)):
            continue
        folder = options.cache / f"{entry.name}-s{seed}-{sha256(key['command'].encode()).hexdigest()[:8]}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        arguments = entry.arguments(seed, shlex.split(_placed(options.networks, options)), options.data)
        if not seed and not folder.exists():
            with tempfile.TemporaryDirectory(prefix="speedrun-") as thrown_away:
                _process([*arguments, "--run-dir", f"{thrown_away}/run", "--stop-after-epoch", "1"], None, options)
        there = (folder / "config.toml").exists()
        command = ["train", "--resume", str(folder)] if there else [*arguments, "--run-dir", str(folder)]
        print(f"{entry.name}, seed {seed}: {'goes on' if there else 'starts'} in {folder}", flush=True)
        if _process(command, folder, options):
            _record(key, entry, folder, options)
        else:
            print(f"{entry.name}, seed {seed}: failed, see {options.cache}/log", flush=True)
            complete = False
    return complete


def _key(entry: Entry, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What a line is known by: a changed command is another run."""
    command = shlex.join(["dfkd-fast", *entry.arguments(seed, shlex.split(options.networks), "DATA")])
    return {"entry": entry.name, "seed": seed, "minutes": options.minutes, "command": command}


def _placed(text: str, options: argparse.Namespace) -> str:
    return text.replace("TEACHERS", str(options.teachers))


def _process(arguments: list[str], folder: Path | None, options: argparse.Namespace) -> bool:
    """Run `dfkd-fast` to its end, or until the curve in `folder` has passed the minutes; whether that went well."""
    with (options.cache / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dfkd_fast", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,  # the terminal's Ctrl-C comes from here, once
        )
        over = False
        try:
            while process.poll() is None:
                time.sleep(options.look)
                curve = curve_of(folder) if folder is not None else []
                if not over and curve and curve[-1][0] >= 60 * options.minutes:
                    over = True
                    process.send_signal(signal.SIGINT)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    return over or process.returncode == 0


def _record(key: dict[str, Any], entry: Entry, folder: Path, options: argparse.Namespace) -> None:
    """Append the run's line: its curve up to the limit, and what was read off it."""
    curve = [point for point in curve_of(folder) if point[0] <= 60 * options.minutes]
    machine = machine_record(make_runtime(device="cpu", precision="fp32", threads=1))
    file = folder / "run.json"
    record = read_run_record(file) if file.exists() else {}
    line = {
        **key,
        "method": entry.method,
        "search": entry.search,
        "reached": reached(curve),
        "last": curve[-1][1] if curve else None,
        "core_seconds": curve[-1][0] if curve else None,
        "ended": bool(record.get("complete")),
        "curve": curve,
        **{name: machine[name] for name in ("git_sha", "processor", "versions", "date")},
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a", encoding="utf-8") as results:
        results.write(json.dumps(line) + "\n")
    print(f"{entry.name}, seed {key['seed']}: {line['reached']}, last {line['last']}", flush=True)


def read_lines(results: Path) -> list[dict[str, Any]]:
    """Every line of the results; none where there is no file."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", nargs="+", metavar="NAME", help=f"of {', '.join(names())}, or .toml files")
    parser.add_argument("--seeds", type=int, metavar="N", help="the first N; without it as many as the entry says")
    parser.add_argument("--minutes", type=float, default=45, help="core-minutes after which a run is stopped")
    below = Path(os.environ.get("DFKD_TEST_DATA", ""))
    parser.add_argument("--data", default=str(below / "cifar10"), help="real test images, as dfkd-fast's --data")
    parser.add_argument("--teachers", type=Path, default=below / "teachers", help="the folder of the teacher's file")
    parser.add_argument("--networks", default=NETWORKS, help="flags of other networks, which are no official runs")
    parser.add_argument("--docs", action="store_true", help="make no run, write the table into the page")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "speedrun", help="where runs are kept")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "speedrun-cpu.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "speedrun.md")
    parser.add_argument("--look", type=float, default=2, help="seconds between two looks at a run's curve")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
