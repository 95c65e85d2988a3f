"""`dfkd-fast bench`: what the methods cost on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dfkd_fast.catalog import BENCH_TARGETS
from dfkd_fast.config.flag_help import HELP, HelpPage
from dfkd_fast.config.flags import from_flags, parse
from dfkd_fast.config.train import Hardware, check_values
from dfkd_fast.errors import UserError, unknown
from dfkd_fast.files.write import append_line, make_folder
from dfkd_fast.messages.terminal import page, show

if TYPE_CHECKING:
    from dfkd_fast.benchmark.methods import Rival

USAGE = """usage: dfkd-fast bench methods [METHOD/PRESET ...] [flags]

Times a few steps of each recipe on random weights and projects them to the whole of it: hours beside the published
ones and the arithmetic floor. Appends a line for each to RESULTS/methods-<device>.jsonl and draws
RESULTS/methods-<device>.png. With --on CARD nothing is timed: hours are predicted for a card that is not here, from the
kernels of the steps and the card's rates, and go to RESULTS/predicted-<card>.jsonl.
`dfkd-fast ls presets` lists presets."""

SUITES = ("methods",)


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Hardware):
    """Flags of `dfkd-fast bench methods`."""

    compile: Literal["off", "default", "max"] = "off"
    """torch.compile for the steps"""
    cuda_graphs: bool = True
    """on a GPU, capture each whole step once and replay it"""
    batch_share: float | None = None
    """share of each batch that is timed, the time scaled up with it; without it 1 on a GPU and 1/16 on a CPU"""
    samples: int = 5
    """timed windows of each kind of step"""
    plot: bool = True
    """draw the picture"""
    results: Path = Path("results")
    """folder that lines and picture go to"""
    on: str | None = None
    """predict for a card that is not here, by the kernels of the steps and its rates; nothing is timed: a100-80gb,
    a100-40gb, h100, h200, b200, rtx4090, l4 or v100
    """


PAGE = HelpPage(usage=USAGE)


def run(arguments: Sequence[str], rival: Rival | None = None) -> int:
    """Measure what is named, by default a preset of each method; beside them a rival's steps, if there is one."""
    if not arguments or arguments[0] in HELP:
        page(PAGE.text(BenchOptions(), everything=HELP[-1] in arguments))
        return 0
    if arguments[0] not in SUITES:
        raise unknown("bench", arguments[0], SUITES)
    names = _leading(arguments[1:])
    flags = from_flags(arguments[1 + len(names) :])
    options = parse(BenchOptions, BenchOptions(), flags, page=PAGE)
    check_values(options)
    if options.on is not None:
        predict_methods(names, options, options.on)
        return 0
    if options.batch_share is not None and not 0 < options.batch_share <= 1:
        raise UserError(f"--batch-share {options.batch_share}: choose a share above 0 and up to 1")
    bench_methods(names, options, rival)
    return 0


def _leading(arguments: Sequence[str]) -> list[str]:
    """The arguments before the first flag."""
    flag = next((index for index, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    return list(arguments[:flag])


def bench_methods(names: Sequence[str], options: BenchOptions, rival: Rival | None) -> None:
    """Measure presets, print a table, append their lines and draw the picture."""
    from dfkd_fast.benchmark import methods
    from dfkd_fast.benchmark.methods import plot
    from dfkd_fast.benchmark.step_timer import TimingWindow
    from dfkd_fast.costs.peak import matmul_rate
    from dfkd_fast.device.runtime import make_runtime
    from dfkd_fast.training.records.run_record import machine_record

    targets = [methods.read_target(name) for name in names or BENCH_TARGETS]
    runtime = make_runtime(
        device=options.device,
        precision=options.precision,
        channels_last=options.channels_last,
        threads=options.threads,
        compilation=options.compile,
        graphs=options.cuda_graphs,
        deterministic=options.deterministic,
    )
    cuda = runtime.device.type == "cuda"
    window = (
        TimingWindow(warmup=10, steps=10, samples=options.samples)
        if cuda
        else TimingWindow(warmup=1, steps=1, samples=options.samples, clock=time.process_time)
    )
    share = options.batch_share or (1.0 if cuda else 1 / 16)
    peak, where, records = matmul_rate(runtime), machine_record(runtime), []
    make_folder(options.results)
    file = options.results / f"methods-{runtime.device.type if not cuda else _slug(runtime.describe())}.jsonl"
    for target in targets:
        show(f"{target.name} ...")
        record = methods.measure(target, runtime, window, share=share, matmul_rate=peak, rival=rival) | where
        append_line(file, json.dumps(record))
        records.append(record)
    show(f"{records[0]['unit']} on {where['device']}, {where['precision']}, {share:g} of each batch timed")
    for line in methods.table(records):
        show(line)
    if options.plot:
        plot(records, file.with_suffix(".png"))


def predict_methods(names: Sequence[str], options: BenchOptions, on: str) -> None:
    """Predict presets for a card that need not be here, print a table and append their lines."""
    from dfkd_fast.benchmark import methods
    from dfkd_fast.benchmark.on_card import check_predictable
    from dfkd_fast.benchmark.prediction import UNIT
    from dfkd_fast.costs.cards import read_card

    card = read_card(on)
    check_predictable(options)
    if options.batch_share is not None:
        raise UserError(f"--batch-share {options.batch_share}: --on predicts whole batches; leave it out")
    targets = [methods.read_target(name) for name in names or BENCH_TARGETS]
    make_folder(options.results)
    file, records = options.results / f"predicted-{card.key}.jsonl", []
    for target in targets:
        show(f"{target.name} ...")
        record = methods.predict_target(target, card, options)
        append_line(file, json.dumps(record))
        records.append(record)
    show(f"PREDICTIONS: {UNIT} on one {card.name}, {records[0]['precision']}, by {card.rates_from}; nothing was timed")
    for line in methods.table(records, of="predicted"):
        show(line)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
