"""`make results-digits`: every method on digits over three seeds, as a table in docs/results.md.

Runs `dfkd-fast train METHOD --preset digits --seed S --threads 1` for each method and seed, or with --ablations for
each variant that leaves a part of a method out. Each run has a folder in the cache, named by a hash of everything that
its numbers depend on: a finished run is never made again, one that was stopped (Ctrl-C, a crash) goes on where it
stopped. Every finished run adds a line to the results file, from which the table is made; where seeds are missing it
says how many there are, or "not measured".
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from cells import ABLATIONS, Recipe, ablation_cells, method_cells
from runs import Runner, read_lines
from table import table, write_between

from dfkd_fast.catalog import METHODS

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Make the runs that are missing, then the table; the exit status is 1 where a run is missing still."""
    options = _options()
    methods = [name for name in METHODS if name in options.methods]
    make_cells = ablation_cells if options.ablations else method_cells
    cells = make_cells(methods, options.seeds)
    runner = Runner(options.cache, options.results, jobs=options.jobs)
    if options.list:
        for recipe in map(Recipe.of, cells):
            state = "finished" if runner.finished(recipe) else "missing"
            print(f"{state:9}{recipe.folder_name}  dfkd-fast {' '.join(recipe.cell.arguments)}")
        return 0
    try:
        complete = options.table_only or runner.run(cells)
    except KeyboardInterrupt:  # while a teacher trained; runs are stopped behind a step, see Runner
        return 128 + signal.SIGINT
    whole = make_cells(list(METHODS), [0, 1, 2])  # whatever was selected: the page has all
    text = table(whole, read_lines(options.results))
    print(text)
    write_between(options.page, "ablations" if options.ablations else "digits", text)
    return 0 if complete else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--ablations", action="store_true", help=f"the variants of {', '.join(ABLATIONS)}")
    parser.add_argument("--jobs", type=int, default=1, help="runs beside each other; each takes one thread")
    parser.add_argument("--list", action="store_true", help="only say which runs there are, finished or missing")
    parser.add_argument("--table-only", action="store_true", help="make no run, only the table")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "table", help="where runs are kept")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "digits.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
