"""`make bench SUITE=steps`: our steps against the released codes' style, on one thread, interleaved.

Each side is a process of its own, with one thread and its own allocator; they take turns, one step at a time, so that a
slow minute of the machine falls on all. Seconds are processor time. Lines go to bench/results/steps-cpu.jsonl, one for
each case, variant and phase, with every sample. A variant is a precision, a precision and a mode of torch.compile
(`bf16+default`), a precision and the teacher's answers cached (`bf16+cached`: student steps only), or a precision and
the fused BatchNorm (`bf16+fused`). The baseline under bf16 autocast and channels-last has a row of its own. What falls
short of its goal is told at the end. `--baseline bf16` races the variants with that one and nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCH), str(BENCH / "steps")]

from cases import CACHED, CASES  # noqa: E402

THEIRS, AUTOCAST = "released-style", "released-style, bf16 autocast, channels-last"
PHASES = ("synthesis", "student")


def phases_of(variant: str) -> tuple[str, ...]:
    """What a side is timed at: cached answers change student steps alone."""
    return PHASES[1:] if variant.endswith(f"+{CACHED}") else PHASES


def serve(connection: Connection, case: str, variant: str) -> None:
    """A side's process: run the phase that is asked for, answer with its seconds; None ends it."""
    import torch
    from cases import Ours, Theirs

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="bench-steps-") as folder:
        is_theirs, place = variant in (THEIRS, AUTOCAST), Path(folder)
        side = Theirs(CASES[case], place, amp=variant == AUTOCAST) if is_theirs else Ours(CASES[case], variant, place)
        connection.send(None)
        while (phase := connection.recv()) is not None:
            start = time.process_time()
            getattr(side, phase)()
            connection.send(time.process_time() - start)


def race(case: str, names: list[str], turns: int, warmup: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by side and phase: `turns` samples of each, after `warmup` that are not counted."""
    context = multiprocessing.get_context("spawn")
    sides: dict[str, Connection] = {}
    for name in names:
        sides[name], there = context.Pipe()
        context.Process(target=serve, args=(there, case, name), daemon=True).start()
        there.close()  # so that a side that dies is not waited for
        sides[name].recv()
    seconds: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in phases_of(name)} for name in sides}
    for turn in range(warmup + turns):
        for phase in PHASES:
            for name, side in sides.items():
                if phase not in seconds[name]:
                    continue
                side.send(phase)
                taken = side.recv()
                if turn >= warmup:
                    seconds[name][phase].append(taken)
    for side in sides.values():
        side.send(None)
    return seconds


def figures(case: str, seconds: dict[str, dict[str, list[float]]], baseline: str = THEIRS) -> list[dict[str, Any]]:
    """A record for each variant and phase; the ratio is the median over turns of the baseline's seconds to ours."""
    rows = []
    for variant in seconds:
        for phase in seconds[variant] if variant != baseline else ():
            ours, theirs = seconds[variant][phase], seconds[baseline][phase]
            goal = CASES[case].goals.get((variant, phase)) if baseline == THEIRS else None
            ratio = statistics.median(their / our for their, our in zip(theirs, ours, strict=True))
            rows.append(
                {
                    "case": case,
                    "variant": variant,
                    "phase": phase,
                    "baseline": baseline,
                    "seconds": statistics.median(ours),
                    "baseline_seconds": statistics.median(theirs),
                    "ratio": ratio,
                    "goal": goal,
                    "met": None if goal is None else ratio >= goal,
                    "samples": ours,
                    "baseline_samples": theirs,
                }
            )
    return rows


def main() -> None:
    """Race the cases that are asked for, by default all; print and append their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=1, help="turns that are not counted")
    parser.add_argument("--variants", nargs="+", help="default: fp32 and bf16, and both with cached answers")
    parser.add_argument("--baseline", default=THEIRS, help="what they are raced with")
    parser.add_argument("--results", type=Path, default=BENCH / "results" / "steps-cpu.jsonl")
    parser.add_argument("cases", nargs="*", default=list(CASES), choices=[*CASES, list(CASES)])
    options = parser.parse_args()
    variants = options.variants or ["fp32", "bf16", f"fp32+{CACHED}", f"bf16+{CACHED}"]
    names = [options.baseline, *([AUTOCAST] if options.baseline == THEIRS else []), *variants]
    from dfkd_fast.device.runtime import make_runtime
    from dfkd_fast.training.records.run_record import machine_record

    where = machine_record(make_runtime(device="cpu", channels_last=True, threads=1))
    where.pop("precision")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    short: list[str] = []
    with options.results.open("a", encoding="utf-8") as file:
        for case in options.cases:
            for row in figures(case, race(case, names, options.turns, options.warmup), options.baseline):
                file.write(json.dumps(row | where) + "\n")
                goal = "" if row["goal"] is None else f"(at least {row['goal']:g}: {'met' if row['met'] else 'MISSED'})"
                if row["met"] is False:
                    short.append(f"{case}, {row['variant']}, {row['phase']}: {row['ratio']:.2f} of {row['goal']:g}")
                print(
                    f"{case:30} {row['variant']:12} {row['phase']:10} {row['seconds']:7.3f} s"
                    f"  baseline {row['baseline_seconds']:7.3f} s  ratio {row['ratio']:5.2f} {goal}",
                    flush=True,
                )
    print("falls short: " + ("; ".join(short) or "nothing"))


if __name__ == "__main__":
    main()
