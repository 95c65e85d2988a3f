"""`dfkd-fast bench methods`: hours of whole recipes on this machine, beside published ones and the arithmetic floor.

Steps are timed on random weights over a warm window and projected to the recipe. Somebody else's steps can be timed and
projected beside them: `Rival`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from dfkd_fast.benchmark.prediction import UNIT, predict
from dfkd_fast.benchmark.projection import project
from dfkd_fast.benchmark.step_profiler import Timings, assemble, profile_steps
from dfkd_fast.benchmark.step_timer import TimingWindow
from dfkd_fast.catalog import METHODS, presets
from dfkd_fast.config.data_sets import DATA_SETS, DataSet, data_set_of
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.cards import Card
from dfkd_fast.costs.flops import StepFlops, count_step_flops
from dfkd_fast.costs.work import Work, recipe_work
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError, unknown
from dfkd_fast.files.write import write_file
from dfkd_fast.methods.base import Method
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.training.logit_cache import resolved_count
from dfkd_fast.training.records.run_record import versions

LEAST_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Target:
    """A preset: its recipe, and what was published for it."""

    method: str
    preset: str
    config: TrainConfig[Any]
    info: ModelInfo
    published_hours: float | None
    source: str

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return f"{self.method}/{self.preset}"


Rival = Callable[[Target, TrainConfig[Any], Work, Runtime, TimingWindow], Timings | None]
"""what times somebody else's steps on a recipe (its batches cut down) whose work is the whole one's; None: it has none
"""


def read_target(name: str) -> Target:
    """The preset METHOD/PRESET. Raises UserError where there is none, or its name does not begin with a data set's."""
    method, _, preset = name.partition("/")
    if method not in METHODS:
        raise unknown("bench methods", method, METHODS)
    known = presets(method)
    if preset not in known:
        raise unknown(f"bench methods {method}/", preset, known)
    config = load_config(default_config(method), preset=preset)
    known_set = DATA_SETS.get(data_set_of(preset), DataSet(0, 0))
    classes, size = config.num_classes or known_set.num_classes, config.image_size or known_set.image_size
    if not (classes and size):
        raise UserError(f"bench methods {name}: it is not known how large its images are; choose another preset")
    about = tomllib.loads(known[preset].read_text(encoding="utf-8"))["preset"]
    return Target(
        method=method,
        preset=preset,
        config=config,
        info=ModelInfo(name="", num_classes=classes, image_size=ImageSize.of(size), mean=(0.5,) * 3, std=(0.25,) * 3),
        published_hours=about.get("hours"),
        source=about["source"],
    )


def measure(
    target: Target,
    runtime: Runtime,
    window: TimingWindow,
    *,
    share: float,
    matmul_rate: float,
    rival: Rival | None = None,
) -> dict[str, Any]:
    """One preset's record: ours, the rival's hours as the baseline's (null without one), the published ones, the floor.

    `share` of each batch is timed, and the time scaled up with the FLOPs: 1 measures the recipe as it is.
    """
    config = target.config
    method, _, _ = assemble(config, target.info, runtime)
    count = partial(
        count_step_flops,
        info=target.info,
        teacher=config.teacher,
        student=config.student,
        cached_answers=resolved_count(config.cache_teacher_logits),
    )
    flops = count(method)
    work = recipe_work(method, flops.round_steps)
    part = replace(config, method=_cut(config.method, share))
    cut, timings = profile_steps(part, target.info, runtime, window)
    scaled = partial(_scaled, cut=cut, full=method, seen=count(cut), flops=flops)
    ours = project(work, scaled(timings), flops, matmul_rate, runtime)
    timed = None if rival is None else rival(target, part, work, runtime, window)
    plain = replace(flops, done=None)  # what a rival computes in fact, nobody has counted
    theirs = None if timed is None else project(work, scaled(timed), plain, matmul_rate, runtime)
    unit = "GPU-hours" if runtime.device.type == "cuda" else "CPU-core-hours"
    return _record(target, ours.record(), None if theirs is None else theirs.record(), share, unit)


def predict_target(target: Target, card: Card, stated: Any) -> dict[str, Any]:
    """One preset's record as `measure` makes it, predicted for a card; `stated` has precision, layout and graphs."""
    config = replace(
        target.config, precision=stated.precision, channels_last=stated.channels_last, cuda_graphs=stated.cuda_graphs
    )
    ours = predict(config, target.info, card, graphs=stated.cuda_graphs)
    record = _record(target, ours.record(), None, 1.0, UNIT)
    return record | {"device": card.name, "precision": ours.precision, "versions": versions()}


def table(records: Sequence[dict[str, Any]], *, of: str = "ours") -> Iterator[str]:
    """Lines: a preset each, hours by what they are of; ours are called `of`."""
    rows: list[Sequence[str]] = [
        ("preset", "teacher -> student", "floor", of, "baseline", "published", "MFU", f"baseline/{of}")
    ]
    for row in records:
        ratio = row["baseline_hours"] and row["baseline_hours"] / row["ours"]["hours"]
        mfu = " / ".join(f"{100 * row['ours'][phase]['mfu']:.0f} %" for phase in ("synthesis", "distillation"))
        hours = (row["ours"]["floor_hours"], row["ours"]["hours"], row["baseline_hours"], row["published_hours"])
        cells = ("-" if value is None else f"{value:,.3g}" for value in hours)
        pair = f"{row['teacher']} -> {row['student']}"
        rows.append((f"{row['method']}/{row['preset']}", pair, *cells, mfu, f"{ratio:.2f}" if ratio else "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for line in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _cut(config: Any, share: float) -> Any:
    sizes = {name: getattr(config, name) for name in ("synthesis_batch_size", "batch_size")}
    return replace(config, **{name: max(LEAST_BATCH, round(size * share)) for name, size in sizes.items()})


def _scaled(timings: Timings, cut: Method, full: Method, seen: StepFlops, flops: StepFlops) -> Timings:
    """Timings of the whole batches from those of a method with smaller ones: steps by their FLOPs, of which a part may
    not depend on the batch (CMI's bank), what a round costs beside them by its images.
    """
    images = {
        part.image_size: whole.synthesis_batch_size / part.synthesis_batch_size
        for part, whole in zip(cut.pools(), full.pools(), strict=True)
    }
    return replace(
        timings,
        synthesis={
            kind: quantiles.times(flops.synthesis[kind] / seen.synthesis[kind])
            for kind, quantiles in timings.synthesis.items()
        },
        round={kind: seconds * images[kind.image_size] for kind, seconds in timings.round.items()},
        student=timings.student.times(flops.student / seen.student),
    )


def _record(
    target: Target, ours: dict[str, Any], theirs: dict[str, Any] | None, share: float, unit: str
) -> dict[str, Any]:
    return {
        "method": target.method,
        "preset": target.preset,
        "teacher": target.config.teacher,
        "student": target.config.student,
        "unit": unit,
        "batch_share": share,
        "ours": ours,
        "baseline_hours": None if theirs is None else theirs["hours"],
        "baseline": theirs,
        "published_hours": target.published_hours,
        "published_source": target.source,
    }


BARS = (
    ("arithmetic floor", "#9a9a9a", lambda row: row["ours"]["floor_hours"]),
    ("ours", "#1b7f5c", lambda row: row["ours"]["hours"]),
    ("baseline", "#c98a1b", lambda row: row["baseline_hours"]),
    ("published", "#8f3b3b", lambda row: row["published_hours"]),
)


def plot(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw one group of bars for each preset, on a logarithmic axis. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('bench methods --plot: needs matplotlib; pip install "dfkd-fast[bench]"') from None
    figure = Figure(figsize=(8, 1.2 + 0.8 * len(records)), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, colour, hours) in enumerate(BARS):
        places = [index + 0.2 * (number - 1.5) for index in range(len(records))]
        values = [hours(row) or 0 for row in records]
        axes.barh(places, values, height=0.18, color=colour, label=label)
    axes.set_yticks(range(len(records)), [f"{row['method']}/{row['preset']}" for row in records])
    axes.invert_yaxis()
    axes.set_xscale("log")
    unit, device = records[0]["unit"], records[0]["device"]
    axes.set_xlabel(f"{unit} on {device} (published: GPU-hours on its own card)")
    figure.legend(loc="outside upper center", ncols=len(BARS), fontsize="small")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_file(file, content.getvalue())
