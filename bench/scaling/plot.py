"""The picture: seconds and memory along every axis, with the expected lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from axes import AXES
from growth import PHASES, Line, expected
from pool_cost import Figures

COLOURS = {"synthesis": "tab:blue", "student": "tab:orange"}


def draw(lines: Mapping[str, Sequence[Line]], pool: Figures, file: Path) -> None:
    """A panel for each axis that has points enough for a line, and one for the pool."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {name: found for name, found in lines.items() if len(found) > max(1, AXES[name].anchor + AXES[name].linear)}
    rows = max(1, -(-(len(shown) + bool(pool)) // 3))
    chart, grid = plt.subplots(rows, 3, figsize=(13, 3.6 * rows), squeeze=False)
    panels = iter(grid.flat)
    for name, found in shown.items():
        panel, axis = next(panels), AXES[name]
        wide = [line["flops"]["synthesis"] / 1e9 for line in found] if name == "depth" else None
        values = wide or [line["value"] for line in found]
        order = sorted(range(len(values)), key=values.__getitem__)
        for phase in PHASES:
            points = [found[place]["seconds"][phase] for place in order]
            line = expected(axis, found, phase)
            places = [values[place] for place in order]
            panel.plot(places, points, "o-", color=COLOURS[phase], label=phase)
            panel.plot(places, [line[place] for place in order], "--", color=COLOURS[phase], alpha=0.5)
        memory = panel.twinx()
        memory.plot(values, [line["peak_memory_bytes"] / 2**30 for line in found], "s:", color="tab:grey", markersize=4)
        memory.set(ylabel="peak memory, GiB", ylim=(0, None))
        panel.set(xscale="log", yscale="log", xlabel=axis.label, ylabel="processor seconds of a step")
        panel.legend(fontsize="x-small", loc="center left", title="dashed: expected", title_fontsize="x-small")
        panel.grid(which="both", alpha=0.3)
    if pool:
        _draw_pool(next(panels), pool)
    for panel in panels:
        panel.axis("off")
    chart.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(file, dpi=110)
    plt.close(chart)


def _draw_pool(panel: object, pool: Figures) -> None:
    """Microseconds of a batch against the images in the pool; expected: constant."""
    for name, points in pool.items():
        values, seconds = zip(*sorted(points.items()), strict=True)
        (drawn,) = panel.plot(values, [1e6 * each for each in seconds], "o-", label=name)  # type: ignore[attr-defined]
        flat = [1e6 * seconds[0]] * len(values)
        panel.plot(values, flat, "--", color=drawn.get_color(), alpha=0.5)  # type: ignore[attr-defined]
    panel.set(xscale="log", yscale="log", xlabel="images in the pool (32 px)", ylabel="microseconds of a batch of 256")  # type: ignore[attr-defined]
    panel.legend(fontsize="small")  # type: ignore[attr-defined]
    panel.grid(which="both", alpha=0.3)  # type: ignore[attr-defined]
