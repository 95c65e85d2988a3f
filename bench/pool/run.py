"""`make bench SUITE=pool`: the pool's figures, appended to bench/results/pool-*.jsonl, and the plot beside them.

`--quick` takes a tenth of the images and rounds, to see that everything runs. `--scratch DIR` is where pools of 3 GB
are written for a while.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import adding
import memory
import sizes
import streams
import torch
import transfer
from report import RESULTS, Figure, append


def main() -> None:
    """Run the parts that are asked for, by default all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("parts", nargs="*", choices=[[], "streams", "sizes", "adding", "memory", "transfer"])
    options = parser.parse_args()
    rounds, largest = (2, 100_000) if options.quick else (9, 1_000_000)
    counts = [count for count in (1_000, 10_000, 100_000, 1_000_000) if count <= largest]
    parts: dict[str, Callable[[], list[Figure]]] = {
        "streams": lambda: [figure for size in (32, 112) for figure in streams.measure(size, rounds)],
        "sizes": lambda: sizes.measure(counts, rounds, options.scratch),
        "adding": lambda: adding.measure(3 * rounds, options.scratch),
        "memory": lambda: memory.measure(largest, options.scratch),
        "transfer": lambda: transfer.measure(rounds, options.scratch),
    }
    for name in options.parts or parts:
        if name == "transfer" and not torch.cuda.is_available():
            print("bandwidths of the device and pinned storages: not measured (no CUDA device)")
            continue
        figures = parts[name]()
        append(name, figures, options.results)
        if name == "sizes":
            sizes.plot(figures, options.results / "pool-sizes.png")


if __name__ == "__main__":
    main()
