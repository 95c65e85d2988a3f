"""The cost of reliability over a whole run: two checkouts train the same student in turns, by processor time.

`python bench/reliability_race.py OLD NEW [--pairs 3]`: folders of two checkouts, each with its packages where
`PYTHONPATH=TREE:TREE/kernels` finds them. The teacher is trained once, by OLD. Five minutes a pair on an idle core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUN = ("train", "fast", "--preset", "digits", "--precision", "fp32", "--no-train-teacher", "--threads", "1")
SIZE = ("--epochs", "24", "--warmup-epochs", "4")


def main() -> None:
    """Print each run's seconds and top-1, then the ratios NEW / OLD and their median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs=2, type=Path, metavar="TREE")
    parser.add_argument("--pairs", type=int, default=3, help="how often each runs")
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        teacher = Path(name) / "teacher.safetensors"
        run(options.trees[0], "teacher", "train", "resnet8", "--data", "digits", "--epochs", "8", "--out", str(teacher))
        for pair in range(options.pairs):
            order = (0, 1) if pair % 2 == 0 else (1, 0)  # whatever drifts meets both alike
            seconds = {which: race(options.trees[which], teacher, Path(name) / f"{pair}-{which}") for which in order}
            ratios.append(seconds[1] / seconds[0])
    print(f"ratios {', '.join(f'{ratio:.3f}' for ratio in ratios)}; median {statistics.median(ratios):.3f}")


def race(tree: Path, teacher: Path, folder: Path) -> float:
    """Processor seconds of one run of the code in `tree`."""
    before = spent()
    run(tree, *RUN, *SIZE, "--teacher-weights", str(teacher), "--run-dir", str(folder))
    seconds = spent() - before
    top1 = json.loads((folder / "run.json").read_text(encoding="utf-8"))["top1_last"]
    print(f"{tree}: {seconds:.1f} s, top-1 {top1:.4f}", flush=True)
    return seconds


def run(tree: Path, *arguments: str) -> None:
    """Run the command line of the code in `tree`; raises CalledProcessError where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tree}:{tree / 'kernels'}"}
    command = [sys.executable, "-m", "dfkd_fast", *arguments]
    subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)


def spent() -> float:
    """Processor seconds of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
