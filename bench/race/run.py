"""`make bench SUITE=race`: equal budgets, ours against the released codes' style, on real pictures and one core each.

    python bench/race/run.py --data DATA --teachers TEACHERS

Same teacher, recipe and networks (ResNet-56 to ResNet-20), 15 core-minutes a run. For each method and seed three runs:
the released style with its schedule scaled to end at the budget; ours over the same steps, which is comparison (a); and
ours with its schedule scaled to end at the budget, which against the first is (b). Seconds are processor time of the
whole training process; evaluation is a process of its own and not counted. The steps of both sides are timed first and
the schedules kept with the runs, so that a race which was stopped goes on with what is missing. Each run appends a line
to the results file; `--docs` writes the tables from it into docs/results.md and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCH), str(BENCH / "race")]

from budget import Measure, Plan, make_plan, measure_apart  # noqa: E402
from checkouts import read_checkouts  # noqa: E402
from contestants import ROLES, ROOT, Entry, Launch, launch_process, read_lines  # noqa: E402
from contestants import run as run_entry  # noqa: E402
from recipes import IMAGE_SIZE, RECIPES, Networks  # noqa: E402
from standings import TITLES, tables, write_between  # noqa: E402

from dfkd_fast.errors import UserError  # noqa: E402

SEEDS = {"nayer": (0, 1, 2), "ssdkd": (0, 1, 2)}
"""of the methods that have more than seed 0"""


def entries(options: argparse.Namespace, plans: dict[str, Plan]) -> list[Entry]:
    """Every run, a seed of all methods before the next."""
    found = []
    seeds = {method: options.seeds or SEEDS.get(method, (0,)) for method in options.methods}
    for seed in sorted({seed for each in seeds.values() for seed in each}):
        for method in (each for each in options.methods if seed in seeds[each]):
            common = {"method": method, "seed": seed, "plan": plans[method], "networks": options.networks}
            common |= {"minutes": options.minutes, "precision": options.precision}
            found += [Entry(role=role, **common) for role in ("baseline", "ours-steps", "ours-budget")]
            if method in options.checkouts:
                found.append(Entry(role="released", checkout=options.checkouts[method], **common))
    return found


def told(missing: Sequence[Entry], plans: dict[str, Plan], budget: float) -> list[str]:
    """The schedules, and what the runs that are missing take in all. `budget`: seconds of a run."""
    lines = []
    for method, plan in plans.items():
        lines.append(
            f"{TITLES[method]}: schedule x {plan.baseline_scale:.3f}, released style {plan.baseline:,.0f} s, ours "
            f"{plan.ours_steps:,.0f} s; schedule x {plan.ours_scale:.3f}, ours {plan.ours_budget:,.0f} s"
        )
        if max(plan.baseline, plan.ours_budget) > budget:
            lines.append(f"{TITLES[method]}: even the smallest schedule does not end within {budget:,.0f} s")
    hours = sum(entry.predicted for entry in missing) / 3600
    return [*lines, f"{len(missing)} runs are missing: {hours:.2f} core-hours, evaluation apart"]


def race(todo: Sequence[Entry], options: argparse.Namespace, launch: Launch) -> bool:
    """Make the runs, `--jobs` at a time; whether all ended well. Each appends its line when it is done."""
    writing = threading.Lock()

    def one(entry: Entry) -> bool:
        name = f"{TITLES[entry.method]}, {ROLES[entry.role]}, seed {entry.seed}"
        try:
            made = run_entry(entry, options.cache, data=options.data, launch=launch, jobs=options.jobs)
        except (SystemExit, UserError) as error:
            print(f"{name}: {error}", flush=True)
            return False
        with writing, options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(made) + "\n")
        print(f"{name}: top-1 {made['top1']:.4f} in {made['processor_seconds']:,.1f} s", flush=True)
        return True

    options.results.parent.mkdir(parents=True, exist_ok=True)
    if options.jobs == 1:
        ended = [one(entry) for entry in todo]  # all of them, whatever becomes of one
    else:
        with ThreadPoolExecutor(options.jobs) as pool:
            ended = [*pool.map(one, todo)]
    return all(ended)


def main(arguments: Sequence[str], *, measure: Measure = measure_apart, launch: Launch = launch_process) -> int:
    """Race what is missing and print the tables; the exit status is 1 where a run failed."""
    options = _options(arguments)
    if options.docs:
        for name, text in tables(read_lines(options.results), [*RECIPES]).items():
            write_between(options.page, name, text)
        return 0
    plans = {
        method: make_plan(
            method,
            options.networks,
            minutes=options.minutes,
            precision=options.precision,
            image_size=IMAGE_SIZE,
            cache=options.cache,
            measure=measure,
        )
        for method in options.methods
    }
    done = {line["identity"] for line in read_lines(options.results)}
    missing = [entry for entry in entries(options, plans) if entry.identity not in done]
    print("\n".join(told(missing, plans, 60 * options.minutes)), flush=True)
    if options.dry_run:
        return 0
    try:
        is_complete = race(missing, options, launch)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    for text in tables(read_lines(options.results), options.methods).values():
        print(f"\n{text}")
    return 0 if is_complete else 1


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("--data", help="CIFAR-10, as dfkd-fast takes it")
    parser.add_argument("--teachers", type=Path, help="folder with the teacher's weights")
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=[*RECIPES], metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: 0 1 2 for NAYER and SSD-KD")
    parser.add_argument("--minutes", type=float, default=15.0, help="core-minutes of a run")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of ours; theirs is fp32")
    parser.add_argument("--jobs", type=int, default=1, help="runs beside each other; each takes one core")
    parser.add_argument("--dry-run", action="store_true", help="only time steps, and say what the runs take")
    parser.add_argument("--docs", action="store_true", help="only write the tables into --page")
    parser.add_argument("--released", nargs="+", default=[], metavar="[METHOD=]DIR", help="checkouts of released codes")
    parser.add_argument("--pair", nargs=2, default=("resnet56", "resnet20"), metavar=("TEACHER", "STUDENT"))
    parser.add_argument("--weights", default="resnet56-4bfd9763.th", help="the teacher's file in --teachers")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "race", help="where runs are kept")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "race-cpu.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    options = parser.parse_args(arguments)
    if not options.docs:
        _check(parser, options)
        options.networks = Networks(*options.pair, options.teachers.resolve() / options.weights)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Say in one line what is missing."""
    for flag in ("data", "teachers"):
        if getattr(options, flag) is None:
            parser.error(f"--{flag}: missing; choose where the {'pictures' if flag == 'data' else 'teachers'} lie")
    if not Path(options.data).exists():
        parser.error(f"--data {options.data}: no such file or folder")
    if not (options.teachers / options.weights).is_file():
        parser.error(f"--weights {options.weights}: no such file in --teachers {options.teachers}")
    if options.minutes <= 0 or options.jobs < 1:
        parser.error(f"--minutes {options.minutes} --jobs {options.jobs}: choose more than 0")
    try:
        options.checkouts: Any = read_checkouts(options.released, options.methods)
    except SystemExit as error:
        parser.error(str(error))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
