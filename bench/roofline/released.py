"""`make bench SUITE=published`: hours of the released codes' style predicted on the card that a paper names, beside the
hours that it prints.

The steps of bench/released_style are recorded on tensors without values, as that style runs them: float32 in NCHW (on
an A100 cuDNN takes TF32 for its convolutions, torch's default), launched one by one, with a wait for each number that
is read. Images go through PNG files: writing them, and reading them in four workers, takes what this machine's
processor takes for it. Appends to bench/results/roofline-published.jsonl. Cells of NAYER and of MUSE-S: of the others
there is no such baseline.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCH))

import torch  # noqa: E402
from released_style.baseline import Baseline  # noqa: E402
from released_style.png_pool import PngFolder, PngPool  # noqa: E402
from released_style.recipe import Recipe, recipe_of  # noqa: E402

from dfkd_fast.benchmark.methods import Target, read_target  # noqa: E402
from dfkd_fast.benchmark.prediction import predict  # noqa: E402
from dfkd_fast.benchmark.step_profiler import assemble  # noqa: E402
from dfkd_fast.catalog import presets  # noqa: E402
from dfkd_fast.config.flags import from_flags  # noqa: E402
from dfkd_fast.config.sources import default_config, load_config  # noqa: E402
from dfkd_fast.config.train import TrainConfig  # noqa: E402
from dfkd_fast.costs.cards import Card, read_card  # noqa: E402
from dfkd_fast.costs.flops import count_step_flops  # noqa: E402
from dfkd_fast.costs.kernels import CONV_KINDS  # noqa: E402
from dfkd_fast.costs.recorder import Part, Recorder  # noqa: E402
from dfkd_fast.costs.roofline import Estimate, estimate  # noqa: E402
from dfkd_fast.costs.without_values import without_values  # noqa: E402
from dfkd_fast.costs.work import RoundSteps, Work, recipe_work  # noqa: E402
from dfkd_fast.device.runtime import Runtime, make_runtime  # noqa: E402
from dfkd_fast.training.records.run_record import machine_record  # noqa: E402

METHODS = ("nayer", "muse-s")
WORKERS = 4
LAYOUT = 3
"""times the traffic of a convolution whose tensor cores read NHWC: NCHW maps are turned, written and turned back"""
CARDS = {"V100": "v100", "A100": "a100-40gb"}
"""as a source says it -> as the table does; the papers that say which A100 say 40 GB"""
CPU = Runtime(device=torch.device("cpu"), precision="fp32", channels_last=False)


@dataclass(frozen=True)
class Cell:
    """A published result that names hours and a card."""

    preset: str
    teacher: str
    student: str
    flags: str
    hours: float
    card: str
    source: str


def cells() -> Iterator[Cell]:
    """All of NAYER's and MUSE-S's."""
    for method in METHODS:
        for name, file in presets(method).items():
            table = tomllib.loads(file.read_text(encoding="utf-8"))
            about = table["preset"]
            card = next((key for told, key in CARDS.items() if told in about["source"]), None)
            pair = {key: table.get(key, "") for key in ("teacher", "student")}
            for row in (about, *about.get("published", ())) if card else ():
                if "hours" in row:
                    found = pair | {key: row[key] for key in pair if key in row}
                    yield Cell(
                        preset=f"{method}/{name}",
                        **found,
                        flags=row.get("flags", ""),
                        hours=row["hours"],
                        card=card,
                        source=about["source"],
                    )


def config_of(cell: Cell) -> TrainConfig[Any]:
    """The recipe of a cell."""
    method, _, preset = cell.preset.partition("/")
    flags = [*cell.flags.split(), "--teacher", cell.teacher, "--student", cell.student]
    assert from_flags(flags)
    return load_config(default_config(method), preset=preset, flags=flags)


@functools.cache
def round_steps(preset: str) -> RoundSteps:
    """The steps of a round, which neither networks nor the data ratio change."""
    target = read_target(preset)
    with without_values(), Recorder(), torch.device("cpu"):
        method, _, _ = assemble(target.config, target.info, CPU)
        counted = count_step_flops(method, target.info, teacher=target.config.teacher, student=target.config.student)
    return counted.round_steps


def work_of(cell: Cell) -> tuple[Work, TrainConfig[Any], Target]:
    """Steps and rounds of a cell's recipe."""
    target, config = read_target(cell.preset), config_of(cell)
    with without_values(), Recorder(), torch.device("cpu"):
        method, _, _ = assemble(replace(config, teacher="wrn16_1", student="wrn16_1"), target.info, CPU)
    return recipe_work(method, round_steps(cell.preset)), config, target


@dataclass(frozen=True)
class Style:
    """The baseline's parts."""

    synthesis: dict[bool, Part]
    """adversarial or not"""
    student: Part
    round: Part


@functools.cache
def style_of(recipe: Recipe) -> Style:
    """The kernels of the baseline's steps."""
    recorder, synthesis, student, end = Recorder(), {}, Part(), Part()
    with tempfile.TemporaryDirectory() as folder, without_values(), recorder, torch.device("cpu"):
        theirs = Baseline(recipe, Path(folder), workers=0)
        theirs.begin_round()
        for adversarial in (False, True):
            synthesis[adversarial] = Part()
            with recorder.into(synthesis[adversarial]):
                theirs.synthesis_step(adversarial=adversarial)
        with recorder.into(end):
            for hook in theirs.hooks:
                hook.update()
        side = recipe.image_size
        batch = torch.rand(recipe.batch_size, 3, side, side), torch.randint(recipe.num_classes, (recipe.batch_size,))
        theirs.batches = itertools.repeat(batch)
        theirs.student.train()
        for _ in range(2):
            student = Part()
            with recorder.into(student):
                theirs.student_step()
    return Style(synthesis, student, end)


@functools.cache
def png_seconds(side: int, pad: int) -> tuple[float, float]:
    """Processor seconds that an image of noise takes to be written, and to be read, cropped and normalised."""
    count = 64
    with tempfile.TemporaryDirectory() as folder:
        view: dict[str, Any] = {"pad": pad, "mean": (0.5,) * 3, "std": (0.25,) * 3}
        pool = PngPool(Path(folder), batch_size=count, workers=0, **view)
        images = torch.nn.functional.interpolate(torch.rand(count, 3, side // 4, side // 4), scale_factor=4)
        times = [time.process_time()]
        pool.add(images, torch.zeros(count, dtype=torch.int64))
        times.append(time.process_time())
        data = PngFolder(Path(folder), **view)
        torch.stack([data[index][0] for index in range(count)])
        times.append(time.process_time())
    return (times[1] - times[0]) / count, (times[2] - times[1]) / count


def on_card(part: Part, card: Card) -> Estimate:
    """The style's part on a card: eager, in NCHW."""
    single = "tf32" if "tf32" in card.matmul else "fp32"
    turned = LAYOUT if single == "tf32" else 1
    kernels = [
        kernel._replace(bytes=kernel.bytes * turned) if kernel.kind in CONV_KINDS else kernel for kernel in part.kernels
    ]
    return estimate(Part(kernels, part.calls, part.waits), card, "ahead", single=single)


def predicted(cell: Cell) -> dict[str, Any]:
    """A line: hours of the style's phases on the cell's card, and what they are of."""
    work, config, target = work_of(cell)
    recipe = recipe_of(config, num_classes=target.info.num_classes, full_size=target.info.image_size.short)
    style, card = style_of(recipe), read_card(cell.card)
    write, read = png_seconds(recipe.image_size, recipe.crop_padding)
    steps: Counter[bool] = Counter()
    for kind, count in work.synthesis_steps.items():
        steps[not kind.warmup] += count
    found = {adversarial: on_card(style.synthesis[adversarial], card).seconds for adversarial in steps}
    synthesis = sum(count * found[adversarial] for adversarial, count in steps.items())
    files = work.rounds.total() * recipe.synthesis_batch_size * write
    student, loader = on_card(style.student, card).seconds, recipe.batch_size * read / WORKERS
    distillation = work.student_steps * max(student, loader)
    hours = (synthesis + files + distillation) / 3600
    return asdict(cell) | {
        "is_prediction": True,
        "card_name": card.name,
        "rates": card.rates_from,
        "predicted_hours": hours,
        "published_hours": cell.hours,
        "ratio": hours / cell.hours,
        "synthesis_hours": synthesis / 3600,
        "png_writing_hours": files / 3600,
        "distillation_hours": distillation / 3600,
        "student_step_ms": 1e3 * student,
        "loader_ms": 1e3 * loader,
        "synthesis_step_ms": {str(key): 1e3 * value for key, value in found.items()},
        "student_steps": work.student_steps,
        "synthesis_steps": work.synthesis_steps.total(),
    }


def ours_on(cell: Cell) -> float:
    """Predicted hours of this package on the same card: bf16 on an A100, fp16 on a V100."""
    card, target = read_card(cell.card), read_target(cell.preset)
    precision = "bf16" if "bf16" in card.matmul else "fp16"
    return predict(replace(config_of(cell), precision=precision), target.info, card).projection.hours.median


def main() -> None:
    """Predict the cells of the presets that are asked for, by default all; print and append their lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", help="METHOD/PRESET")
    parser.add_argument("--results", type=Path, default=BENCH / "results" / "roofline-published.jsonl")
    options = parser.parse_args()
    where = machine_record(make_runtime(device="cpu", threads=1))
    for cell in cells():
        if options.presets and cell.preset not in options.presets:
            continue
        is_main = cell == next(each for each in cells() if each.preset == cell.preset)
        row = predicted(cell) | {"ours_predicted_hours": ours_on(cell) if is_main else None}
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | where) + "\n")
        print(
            f"{cell.preset:18} {cell.teacher} -> {cell.student} {cell.flags}: predicted {row['predicted_hours']:.2f} "
            f"h on {cell.card}, published {cell.hours:g} h, ratio {row['ratio']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
