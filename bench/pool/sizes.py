"""The time of a batch against the size of the pool, by storage and stream, and its picture."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from report import RESULTS, Figure
from scene import BATCH, filled_pool, runtime_on, view_of
from timing import medians

from dfkd_fast.pool.stream import AugmentSpec, Stream
from dfkd_fast.pool.streams import make_stream
from dfkd_fast.sampling import EpochShuffle, Sampler

SIZE = 32
BATCHES = {"kernel": 16, "dali": 6, "torch": 2}
"""batches in one timing, by stream"""
MOST_SLOWER = 1.2


def measure(counts: Sequence[int], rounds: int, scratch: Path | None) -> list[Figure]:
    """Images per CPU-second, read from the first `count` images of one pool per storage, all in the page cache."""
    view, runtime = view_of(SIZE), runtime_on()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        pools = {
            "device": filled_pool(runtime, SIZE, max(counts)),
            "mmap": filled_pool(runtime, SIZE, max(counts), Path(folder) / "pool", storage="mmap"),
        }
        variants: dict[str, Callable[[], object]] = {}
        for storage, pool in pools.items():
            for name, batches in BATCHES.items():
                shape = (BATCH, SIZE, SIZE, 3)
                stream = make_stream(name, pool.storage, view, runtime, shape=shape, depth=0)
                for count in counts:
                    sampler = EpochShuffle(count, BATCH, seed=0)
                    variants[f"{storage} {name} {count}"] = lambda a=stream, b=sampler, n=batches: read(a, b, view, n)
        for storage in pools:  # every page of the mapping is touched before anything is timed
            for _ in range(max(counts) // BATCH // BATCHES["kernel"]):
                variants[f"{storage} kernel {max(counts)}"]()
        seconds = medians(variants, rounds=rounds)
        for pool in pools.values():
            pool.close()
    figures = []
    for name, value in seconds.items():
        storage, stream, count = name.split()
        rate = BATCH * BATCHES[stream] / value
        details = {"tier": storage, "stream": stream, "images": int(count)}
        figures.append(
            Figure(name=f"{storage}, {stream}, {int(count):,} images", value=rate, unit="images/CPU-s", details=details)
        )
    slower = seconds[f"mmap kernel {max(counts)}"] / seconds[f"mmap kernel {10_000}"]
    name = f"batch of {max(counts):,} / of 10,000 images, mmap"
    return [*figures, Figure(name=name, value=slower, unit="x", bound=MOST_SLOWER, sense="at most")]


def read(stream: Stream, sampler: Sampler, view: AugmentSpec, batches: int) -> None:
    """Some batches, one after another."""
    for _ in range(batches):
        slots = sampler.draw().slots
        stream.push(slots, view.draw(len(slots), slots.device))
        stream.pop()


def plot(figures: Sequence[Figure], file: Path = RESULTS / "pool-sizes.png") -> None:
    """Images per CPU-second against pool size, a line for each storage and stream."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for figure in figures:
        if figure.details:
            key = figure.details["stream"], figure.details["tier"]
            lines.setdefault(key, []).append((figure.details["images"], figure.value))
    chart, axes = plt.subplots(figsize=(7, 4.2))
    colours = {"kernel": "tab:blue", "dali": "tab:green", "torch": "tab:orange"}
    for (stream, storage), points in lines.items():
        style = {"color": colours[stream], "linestyle": "-" if storage == "device" else "--", "marker": "o"}
        axes.plot(*zip(*sorted(points), strict=True), label=f"{stream}, {storage}", **style)
    axes.set(xscale="log", yscale="log", xlabel=f"images in the pool ({SIZE} px)", ylabel="images per CPU-second")
    axes.grid(which="both", alpha=0.3)
    axes.legend(ncols=3, fontsize="small")
    chart.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(file, dpi=140)
