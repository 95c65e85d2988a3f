"""The runs of a race: what each is, how it is started, and the line that it leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from budget import Plan
from checkouts import SCRIPT, accuracy, command_line
from recipes import IMAGE_SIZE, RECIPES, Networks, config_of, flags_of, public
from released_style.schedule import rounds

from dfkd_fast.config.record import config_hash, write_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.training.records.run_record import machine_record

ROOT = Path(__file__).resolve().parents[2]
WHOLE_RUN = ROOT / "bench" / "released_style" / "whole_run.py"
ROLES = {
    "baseline": "released style, at its budget",
    "ours-steps": "ours, the same steps",
    "ours-budget": "ours, at the budget",
    "released": "the released code, the same steps",
}
TOP1 = re.compile(r"^top-1 ([0-9.]+) ", re.MULTILINE)

Launch = Callable[[Sequence[str], Path, Path | None], float]
"""words behind `python`, log, working folder -> processor seconds; raises SystemExit where the command fails"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run: a method, a seed, and whose steps in which schedule."""

    role: str
    method: str
    seed: int
    plan: Plan
    networks: Networks
    minutes: float
    precision: str
    """of ours; the baseline computes in float32, as the released codes do"""
    checkout: Path | None = None

    @property
    def scale(self) -> float:
        """Of its schedule."""
        return self.plan.ours_scale if self.role == "ours-budget" else self.plan.baseline_scale

    @property
    def predicted(self) -> float:
        """Processor seconds by the plan."""
        known = {"ours-steps": self.plan.ours_steps, "ours-budget": self.plan.ours_budget}
        return known.get(self.role, self.plan.baseline)

    @property
    def is_ours(self) -> bool:
        """Whether this package runs it."""
        return self.role.startswith("ours")

    def flags(self, networks: Networks) -> list[str]:
        """Behind `--preset`."""
        more = ("--precision", self.precision) if self.is_ours else ()
        return flags_of(self.method, networks, scale=self.scale, seed=self.seed, more=more)

    @cached_property
    def config(self) -> TrainConfig[Any]:
        """Every setting of its recipe."""
        return config_of(self.method, self.flags(self.networks))

    @cached_property
    def config_hash(self) -> str:
        """Of the recipe, wherever its files lie."""
        return config_hash(replace(self.config, teacher_weights=public(self.networks).weights))

    @property
    def identity(self) -> str:
        """Equal for runs of which one is enough: role, and everything that the recipe says."""
        return f"{self.role}-{self.method}-s{self.seed}-{self.config_hash}"

    def command(self, config: Path, folder: Path) -> tuple[list[str], Path | None]:
        """Words behind `python`, and the folder that it is started in."""
        if self.is_ours:
            words = ["-m", "dfkd_fast", "train", self.method, "--preset", RECIPES[self.method].preset]
            return [*words, *self.flags(self.networks), "--run-dir", str(folder)], None
        if self.checkout is None:
            return [str(WHOLE_RUN), str(config), str(folder)], None
        recipe = self.config
        names = {"teacher": recipe.teacher, "student": recipe.student, "seed": self.seed}
        return [SCRIPT, *command_line(self.method, recipe.method, **names, folder=folder)], self.checkout

    def told(self) -> str:
        """The command as a line has it: what anybody can type."""
        networks = public(self.networks)
        words = [self.method, "--preset", RECIPES[self.method].preset, *self.flags(networks)]
        if self.is_ours:
            return " ".join(("dfkd-fast train", *words))
        if self.checkout is not None:
            return " ".join(("python", *self.command(Path("CONFIG"), Path("FOLDER"))[0]))
        return " ".join(("python bench/released_style/whole_run.py CONFIG FOLDER; CONFIG of", *words))


def run(entry: Entry, cache: Path, *, data: str, launch: Launch, jobs: int) -> dict[str, Any]:
    """Train and evaluate; the line of it. What an interrupted call has left is thrown away."""
    folder, config = cache / entry.identity, cache / f"{entry.identity}.toml"
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    write_config(entry.config, config)
    log = config.with_suffix(".log")
    words, place = entry.command(config, folder)
    seconds = launch(words, log, place)
    if entry.checkout is not None:
        top1 = accuracy(log.read_text(encoding="utf-8", errors="replace"), epochs=entry.config.method.epochs)
    else:
        top1 = evaluated(folder / "student.safetensors", data, config.with_suffix(".eval.log"), launch)
    return line(entry, seconds, top1) | {"jobs": jobs}


def evaluated(student: Path, data: str, log: Path, launch: Launch) -> float:
    """Top-1 on the test images, by a command of its own, which no side's seconds have in them."""
    launch(["-m", "dfkd_fast", "eval", str(student), "--data", data, "--threads", "1"], log, None)
    found = TOP1.search(log.read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"no top-1 in {log}")
    return float(found[1])


def line(entry: Entry, seconds: float, top1: float) -> dict[str, Any]:
    """What is appended to the results."""
    config, method = entry.config, entry.config.method
    made = sum(rounds(method, epoch, full_size=IMAGE_SIZE) for epoch in range(method.epochs))
    runtime = make_runtime(device="cpu", precision=entry.precision if entry.is_ours else "fp32", threads=1)
    return {
        "identity": entry.identity,
        "role": entry.role,
        "method": entry.method,
        "seed": entry.seed,
        "minutes": entry.minutes,
        "scale": entry.scale,
        "epochs": method.epochs,
        "warmup_epochs": method.warmup_epochs,
        "synthesis_steps": method.synthesis_steps,
        "generator_steps": made * method.synthesis_steps,
        "student_steps": (method.epochs - method.warmup_epochs) * method.steps_per_epoch,
        "teacher": config.teacher,
        "student": config.student,
        "processor_seconds": seconds,
        "predicted_seconds": entry.predicted,
        "top1": top1,
        "command": entry.told(),
        "config_hash": entry.config_hash,
    } | machine_record(runtime)


def launch_process(words: Sequence[str], log: Path, place: Path | None) -> float:
    """A process of its own with one thread; its processor seconds and those of all that it started."""
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=place,
        )
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}, see {log}")
    return used.ru_utime + used.ru_stime


def read_lines(results: Path) -> list[dict[str, Any]]:
    """Every line of a results file; none where there is no file."""
    return [json.loads(text) for text in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []
