"""`make bench SUITE=scaling`: how the cost of a step grows with classes, pixels, batch, processes, depth and pool.

Each point is measured in a process of its own, one thread, processor time, and appended as a line to
bench/results/scaling-cpu.jsonl; points that the file has are not measured again (`--again`: all are). Lines that are
complete are held against the work: what grows faster is said to be MISSED. The picture goes to docs/images/scaling.png.

`pool` fills 3 GB of disk and of memory for a while; `pool-cold`, only when it is named, 31 GB of disk: a pool that is
larger than memory. `runs` trains for an epoch or two with 21,843 classes and tells the memory that took.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCH / "scaling"), str(BENCH / "pool")]

import pool_cost  # noqa: E402
import runs  # noqa: E402
from axes import AXES  # noqa: E402
from growth import Line, verdicts  # noqa: E402
from plot import draw  # noqa: E402
from steps import measure  # noqa: E402

COUNTS = (10_000, 100_000, 1_000_000)
COLD = 10_000_000


class Results:
    """The lines of a file, the newest of each kind, and its end, to which new ones go."""

    def __init__(self, file: Path) -> None:
        self.file, self.lines = file, dict[tuple[Any, ...], Line]()
        for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            self._keep(json.loads(text))

    def add(self, line: Line) -> None:
        """Append a line."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._keep(line)

    def along(self, axis: str) -> list[Line]:
        """An axis' lines, in the order of its points."""
        return [self.lines[point.key] for point in AXES[axis].points if point.key in self.lines]

    def pool(self) -> pool_cost.Figures:
        """What parts of a pool's work cost, by its images."""
        figures: pool_cost.Figures = {}
        for (axis, what, value), line in self.lines.items():
            if axis == "pool":
                figures.setdefault(what, {})[value] = line["seconds"]
        return figures

    def _keep(self, line: Line) -> None:
        self.lines[line["axis"], line["method"], line["value"]] = line


def measure_axis(name: str, results: Results, *, again: bool, samples: int) -> None:
    """Measure an axis' missing points, one after the other."""
    for point in AXES[name].points:
        if again or point.key not in results.lines:
            line = measure(point, samples)
            results.add(line)
            seconds = "  ".join(f"{phase} {value:.4f} s" for phase, value in line["seconds"].items())
            print(f"{name:18} {point.value:>9,}  {seconds}  {line['peak_memory_bytes'] / 2**30:.2f} GiB", flush=True)


def measure_pool(results: Results, where: Line, *, again: bool, rounds: int, scratch: Path | None) -> None:
    """Measure a pool's parts, warm; the whole of it or nothing, since sizes are compared within one process."""
    if not again and ("pool", pool_cost.FLUSH, COUNTS[-1]) in results.lines:
        return
    figures = pool_cost.warm(COUNTS, rounds, scratch) | pool_cost.flushes(COUNTS, scratch)
    for what, points in figures.items():
        for count, seconds in points.items():
            results.add({"axis": "pool", "method": what, "value": count, "seconds": seconds, **where})
            print(f"pool               {count:>9,}  {what} {1e6 * seconds:,.1f} us", flush=True)


def measure_cold(results: Results, where: Line, *, again: bool, batches: int, scratch: Path | None) -> None:
    """Measure a pool that is larger than memory."""
    key = ("pool-cold", "a batch, from the disk", COLD)
    if again or key not in results.lines:
        results.add({**dict(zip(("axis", "method", "value"), key, strict=True)), **where} | pool_cost.cold(
            COLD, batches, scratch
        ))  # fmt: skip
    line = results.lines[key]
    print(
        f"pool-cold          {COLD:>9,}  {line['bytes_read'] / 1e6:.2f} MB read for a batch of "
        f"{line['bytes_of_a_batch'] / 1e6:.2f} MB, {1e3 * line['wall_seconds']:.1f} ms by the wall, "
        f"{1e3 * line['seconds']:.2f} ms of processor time"
    )


def summary(results: Results) -> Iterator[str]:
    """What keeps to its line and what does not."""
    for name, axis in AXES.items():
        yield from verdicts(name, axis, results.along(name))
    batches = results.pool().get(pool_cost.MAPPED, {})
    if COUNTS[0] in batches and COUNTS[-1] in batches:
        ratio, most = batches[COUNTS[-1]] / batches[COUNTS[0]], pool_cost.MOST_SLOWER
        kept = "met" if ratio <= most else "MISSED"
        yield f"pool: a batch of {COUNTS[-1]:,} images {ratio:.2f} of one of {COUNTS[0]:,} (at most {most}: {kept})"


def main() -> None:
    """Measure what is asked for and missing, print what misses its line, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="measure also what the file has")
    parser.add_argument("--samples", type=int, default=7, help="timed steps of each kind")
    parser.add_argument("--rounds", type=int, default=15, help="of the pool's sizes, interleaved")
    parser.add_argument("--batches", type=int, default=400, help="read from the pool that is larger than memory")
    parser.add_argument("--scratch", type=Path, help="where pools are written for a while")
    parser.add_argument("--results", type=Path, default=BENCH / "results" / "scaling-cpu.jsonl")
    parser.add_argument("--picture", type=Path, default=BENCH.parent / "docs" / "images" / "scaling.png")
    parser.add_argument("axes", nargs="*", help=f"{', '.join(AXES)}, runs, pool, pool-cold")
    options = parser.parse_args()
    if unknown := set(options.axes) - {*AXES, "runs", "pool", "pool-cold"}:
        parser.error(f"{', '.join(sorted(unknown))}: choose of {', '.join(AXES)}, runs, pool, pool-cold")
    from dfkd_fast.training.records.run_record import machine_record

    results, where, again = Results(options.results), machine_record(pool_cost.runtime_on()), options.again
    scratch = options.scratch
    parts: dict[str, Callable[[], None]] = {
        "runs": lambda: runs.measure(results, where, again=again),
        "pool": lambda: measure_pool(results, where, again=again, rounds=options.rounds, scratch=scratch),
        "pool-cold": lambda: measure_cold(results, where, again=again, batches=options.batches, scratch=scratch),
    }
    for name in options.axes or (*AXES, "runs", "pool"):
        if name in AXES:
            measure_axis(name, results, again=again, samples=options.samples)
        else:
            parts[name]()
    for line in summary(results):
        print(line)
    draw({name: results.along(name) for name in AXES}, results.pool(), options.picture)


if __name__ == "__main__":
    main()
