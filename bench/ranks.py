"""`make bench SUITE=ranks`: two data-parallel processes against two independent ones, each pinned to a core of its own.

Both pairs run the same steps on as many images a process, and take turns: first the independent pair, both at once,
then the data-parallel one. What counts is wall time, so the two cores must have no other work. Throughput is images per
second of both processes together, until the slower one is done. Lines go to bench/results/ranks-cpu.jsonl, one for each
case, scope of BatchNorm and phase, with every sample.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH), str(BENCH / "steps")]

from cases import CASES  # noqa: E402

ALONE = "independent"
SCOPES = ("rank", "global")
PHASES = ("synthesis", "student")
RANKS = 2
GOAL = 0.9
"""the least share of the independent pair's throughput, with statistics per rank"""


@dataclass(frozen=True)
class Side:
    """One process of a pair."""

    case: str
    pair: str
    """independent, or the scope of BatchNorm of a data-parallel one"""
    precision: str
    rank: int
    core: int
    port: int
    steps: int
    """in a turn"""

    def serve(self, connection: Connection) -> None:
        """Run the phase that is asked for, answer with its images and seconds; None ends it."""
        os.sched_setaffinity(0, {self.core})
        with tempfile.TemporaryDirectory(prefix="bench-ranks-") as folder:
            phases, images = self._assemble(Path(folder))
            connection.send(None)
            while (phase := connection.recv()) is not None:
                start, spent = time.perf_counter(), time.process_time()
                phases[phase]()
                connection.send((images[phase], time.perf_counter() - start, time.process_time() - spent))
            os._exit(0)  # without the other's goodbye

    def _assemble(self, folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
        import torch
        from torch import distributed

        from dfkd_fast.benchmark.step_profiler import StepProfiler
        from dfkd_fast.costs.work import student_epoch
        from dfkd_fast.device.runtime import make_runtime
        from dfkd_fast.models.factory import ModelInfo

        together, case = self.pair != ALONE, CASES[self.case]
        if together:
            address = f"tcp://127.0.0.1:{self.port}"
            distributed.init_process_group("gloo", init_method=address, rank=self.rank, world_size=RANKS)
        torch.manual_seed(0)
        config = case.config()
        sizes = {name: getattr(config.method, name) for name in ("synthesis_batch_size", "batch_size")}
        if together:
            config = replace(config, method=replace(config.method, **{name: RANKS * n for name, n in sizes.items()}))
        scope: Any = self.pair if together else "rank"
        runtime = make_runtime(device="cpu", precision=self.precision, channels_last=True, threads=1, bn_scope=scope)
        normal = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        info = ModelInfo(name="", num_classes=case.num_classes, image_size=case.image_size, **normal)
        profiler = StepProfiler(config, info, runtime, folder)
        profiler.method.train()
        profiler.fill(profiler.step_round())
        profiler.trainer.begin_epoch(student_epoch(profiler.method))

        def synthesis() -> None:
            for _ in range(self.steps):
                profiler.step_round()

        def student() -> None:
            profiler.trainer.steps(self.steps, lambda *_: None)

        images = {phase: self.steps * size for phase, size in zip(PHASES, sizes.values(), strict=True)}
        return {"synthesis": synthesis, "student": student}, images


Samples = dict[str, dict[str, list[float]]]
"""by pair and phase"""


def race(case: str, options: argparse.Namespace) -> tuple[Samples, Samples]:
    """Images per second, and processor seconds of both: `turns` samples of each, after one that is not counted."""
    pairs = {name: [start(case, name, rank, options) for rank in range(RANKS)] for name in (ALONE, *options.scopes)}
    for sides in pairs.values():
        for side in sides:
            side.recv()
    found, busy = ({name: {phase: list[float]() for phase in PHASES} for name in pairs} for _ in range(2))
    for turn in range(1 + options.turns):
        for phase in PHASES:
            for name, sides in pairs.items():
                for side in sides:
                    side.send(phase)
                taken = [side.recv() for side in sides]
                if turn:
                    alone = sum(images / seconds for images, seconds, _ in taken)
                    both = sum(images for images, *_ in taken) / max(seconds for _, seconds, _ in taken)
                    found[name][phase].append(alone if name == ALONE else both)
                    busy[name][phase].append(sum(seconds for *_, seconds in taken))
    for sides in pairs.values():
        for side in sides:
            side.send(None)
    return found, busy


PORTS: dict[tuple[str, str], int] = {}


def start(case: str, pair: str, rank: int, options: argparse.Namespace) -> Connection:
    """Start a process of a pair; the connection to it."""
    if (case, pair) not in PORTS:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            PORTS[case, pair] = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    side = Side(case, pair, options.precision, rank, options.cores[rank], PORTS[case, pair], options.steps)
    context.Process(target=side.serve, args=(there,), daemon=True).start()
    return here


def figures(case: str, found: Samples, busy: Samples) -> list[dict[str, Any]]:
    """A record for each scope and phase; the ratio is the median over turns of ours to the independent pair's.
    `processor_ratio` is that of processor time, theirs to ours, without what ranks wait for each other.
    """
    rows = []
    for scope in found:
        for phase in PHASES if scope != ALONE else ():
            ours, theirs = found[scope][phase], found[ALONE][phase]
            ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
            spent = statistics.median(busy[ALONE][phase]) / statistics.median(busy[scope][phase])
            goal = GOAL if scope == "rank" else None
            rows.append(
                {
                    "case": case,
                    "scope": scope,
                    "phase": phase,
                    "images_per_second": statistics.median(ours),
                    "independent_images_per_second": statistics.median(theirs),
                    "ratio": ratio,
                    "processor_ratio": spent,
                    "goal": goal,
                    "met": None if goal is None else ratio >= goal,
                    "samples": ours,
                    "independent_samples": theirs,
                }
            )
    return rows


def main() -> None:
    """Race the cases that are asked for, by default all; print and append their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="steps of each phase in a turn")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--scopes", nargs="+", default=list(SCOPES), choices=SCOPES)
    parser.add_argument("--cores", type=int, nargs=RANKS, default=sorted(os.sched_getaffinity(0))[:RANKS])
    parser.add_argument("--results", type=Path, default=BENCH / "results" / "ranks-cpu.jsonl")
    parser.add_argument("cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    from dfkd_fast.device.runtime import make_runtime
    from dfkd_fast.training.records.run_record import machine_record

    where = machine_record(make_runtime(device="cpu", precision=options.precision, channels_last=True, threads=1))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a", encoding="utf-8") as file:
        for case in options.cases:
            for row in figures(case, *race(case, options)):
                file.write(json.dumps(row | where) + "\n")
                goal = "" if row["goal"] is None else f"(at least {row['goal']:g}: {'met' if row['met'] else 'MISSED'})"
                print(
                    f"{case:30} {row['scope']:7} {row['phase']:10} {row['images_per_second']:7.1f} images/s"
                    f"  independent {row['independent_images_per_second']:7.1f}  ratio {row['ratio']:5.3f} {goal}"
                    f" (of processor time {row['processor_ratio']:.3f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
