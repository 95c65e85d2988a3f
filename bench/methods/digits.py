"""`make bench SUITE=digits`: every method on digits over three seeds, as a table in docs/results.md.

Runs `dfkd-fast train METHOD --preset digits --seed S --threads 1` for each method and seed; with --ablations each
variant that leaves a part of a method out, with --precision each method in another precision, for a table that compares
it with the presets', with --quick each method's digits-quick preset, with seed 0 alone. Each run has a folder in the
cache, named by a hash of everything that its numbers depend on: a finished run is never made again, one that was
stopped (Ctrl-C, a crash) goes on where it stopped. Every finished run adds a line to the results file, from which the
table is made; where seeds are missing it says how many there are, or "not measured".
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from cells import ABLATIONS, QUICK, Cell, Recipe, ablation_cells, method_cells
from precision import precision_table
from quick import QuickRunner, quick_table
from runs import Runner, read_lines
from table import table, write_between

from dfkd_fast.catalog import METHODS

ROOT = Path(__file__).resolve().parents[2]
SEEDS = [0, 1, 2]


def main() -> int:
    """Make the runs that are missing, then the table; the exit status is 1 where a run is missing still."""
    options = _options()
    methods = [name for name in METHODS if name in options.methods]
    cells = _cells(methods, options.seeds or (SEEDS[:1] if options.quick else SEEDS), options)
    runner = (QuickRunner if options.quick else Runner)(options.cache, options.results, jobs=options.jobs)
    if options.list:
        for recipe in map(Recipe.of, cells):
            state = "finished" if runner.finished(recipe) else "missing"
            print(f"{state:9}{recipe.folder_name}  dfkd-fast {' '.join(recipe.cell.arguments)}")
        return 0
    try:
        complete = options.table_only or runner.run(cells)
    except KeyboardInterrupt:  # while a teacher trained; runs are stopped behind a step, see Runner
        return 128 + signal.SIGINT
    name, text = _table(options)
    print(text)
    write_between(options.page, name, text)
    return 0 if complete else 1


def _cells(methods: list[str], seeds: list[int], options: argparse.Namespace) -> list[Cell]:
    if options.ablations:
        return ablation_cells(methods, seeds)
    if options.quick:
        return method_cells(methods, seeds, preset=QUICK)
    return method_cells(methods, seeds, options.precision or "")


def _table(options: argparse.Namespace) -> tuple[str, str]:
    """Where on the page it stands, and the table: of all methods and seeds, whatever was selected."""
    methods, lines = list(METHODS), read_lines(options.results)
    if options.precision:
        return "precision", precision_table(methods, SEEDS, lines, options.precision)
    if options.quick:
        return "quick", quick_table(methods, SEEDS, lines)
    return "ablations" if options.ablations else "digits", table(_cells(methods, SEEDS, options), lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="without it 0 1 2, with --quick 0")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ablations", action="store_true", help=f"the variants of {', '.join(ABLATIONS)}")
    what.add_argument("--precision", choices=("fp32", "fp16"), help="every method in this precision, against bf16")
    what.add_argument("--quick", action="store_true", help="every method's digits-quick preset, against digits")
    parser.add_argument("--jobs", type=int, default=1, help="runs beside each other; each takes one thread")
    parser.add_argument("--list", action="store_true", help="only say which runs there are, finished or missing")
    parser.add_argument("--table-only", action="store_true", help="make no run, only the table")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "table", help="where runs are kept")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "digits.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
