"""Making a run or taking it from the cache: a finished one is never repeated, an unfinished one is resumed."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cells import Cell, Recipe

from dfkd_fast.config.record import write_config
from dfkd_fast.config.train import CONFIG_FILE, TrainConfig
from dfkd_fast.data.splits import load_split
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.training.assemble import load_teacher
from dfkd_fast.training.records.run_record import read_run_record

MEASURED = (
    *("teacher_top1", "top1_last", "agreement", "images_synthesized", "generator_steps", "student_steps"),
    *("synthesis_seconds", "distillation_seconds", "precision", "device", "versions", "git_sha"),
)
"""what a line takes from run.json as it is"""


class Runner:
    """Makes cells' runs in a cache folder and appends one line for each to a results file."""

    def __init__(self, cache: Path, results: Path, *, jobs: int) -> None:
        self.cache, self.results, self.jobs = cache, results, jobs
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._spent: dict[Path, float] = {}
        """processor seconds of runs that were made in one go with nothing beside them"""
        self._writing = threading.Lock()
        self._stopped = threading.Event()

    def run(self, cells: Sequence[Cell]) -> bool:
        """Make what is missing, `jobs` at a time; whether all are there now. Ctrl-C stops each run behind a step."""
        self.cache.mkdir(parents=True, exist_ok=True)
        _train_teachers([recipe.config for recipe in map(Recipe.of, cells) if not self.finished(recipe)])
        with self._stopping(), ThreadPoolExecutor(self.jobs) as pool:
            return all(list(pool.map(self._cell, cells)))

    def finished(self, recipe: Recipe) -> bool:
        """Whether the cache has the run."""
        record = self.cache / recipe.folder_name / "run.json"
        return record.exists() and bool(read_run_record(record)["complete"])

    def added(self, recipe: Recipe) -> dict[str, Any]:
        """What a line has beside."""
        return {}

    def _cell(self, cell: Cell) -> bool:
        if self._stopped.is_set():
            return False
        recipe = Recipe.of(cell)  # read now: the preset may have changed since the command started
        folder = self.cache / recipe.folder_name
        with _sole(folder.with_suffix(".lock")) as mine:
            if not mine:
                print(f"{cell.title}, seed {cell.seed}: under way in another process", flush=True)
                return False
            if not self.finished(recipe) and not self._process(recipe, folder):
                return False
        self._record(recipe, folder)
        return True

    def _process(self, recipe: Recipe, folder: Path) -> bool:
        """Start the run or take it up, and wait for it; whether it finished."""
        cell, there = recipe.cell, (folder / CONFIG_FILE).exists()
        arguments = ["train", "--resume", str(folder)]
        if not there:  # the very settings that were hashed, not the preset again: it may have changed meanwhile
            file = folder.with_suffix(".toml")
            write_config(recipe.config, file)
            arguments = ["train", cell.method, "--config", str(file), "--run-dir", str(folder)]
        print(f"{cell.title}, seed {cell.seed}: {'goes on' if there else 'starts'} in {folder}", flush=True)
        environment, before = os.environ | {"OMP_NUM_THREADS": "1"}, _children_seconds()
        with folder.with_suffix(".log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dfkd_fast", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # the terminal's Ctrl-C comes through `_stop`, once
            )
        self._processes.add(process)
        if self._stopped.is_set():
            process.send_signal(signal.SIGINT)
        status = process.wait()
        self._processes.discard(process)
        if self.jobs == 1 and not there:
            self._spent[folder] = _children_seconds() - before
        if status and not self._stopped.is_set():
            print(f"{cell.title}, seed {cell.seed}: failed with {status}, see {folder}.log", flush=True)
        return status == 0

    def _record(self, recipe: Recipe, folder: Path) -> None:
        """Append the run's line, unless it is there."""
        with self._writing:
            if any(line["run_hash"] == recipe.run_hash for line in read_lines(self.results)):
                return
            line = _line(recipe, read_run_record(folder / "run.json"), self.jobs) | self.added(recipe)
            line["processor_seconds"] = self._spent.get(folder)
            self.results.parent.mkdir(parents=True, exist_ok=True)
            with self.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{recipe.cell.title}, seed {recipe.cell.seed}: top-1 {line['top1_last']:.4f}", flush=True)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {signum: signal.signal(signum, self._stop) for signum in signals}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _stop(self, signum: int, frame: object) -> None:
        self._stopped.set()
        for process in tuple(self._processes):
            process.send_signal(signum)


def read_lines(results: Path) -> list[dict[str, Any]]:
    """Every line of a results file; none where there is no file."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def _line(recipe: Recipe, record: dict[str, Any], jobs: int) -> dict[str, Any]:
    cell = recipe.cell
    return {
        "method": cell.method,
        "variant": cell.variant,
        "seed": cell.seed,
        "command": " ".join(("dfkd-fast", *cell.arguments)),
        "config_hash": record["config_hash"],
        "recipe_hash": recipe.recipe_hash,
        "run_hash": recipe.run_hash,
        **{key: record[key] for key in MEASURED},
        "processor": _processor(),
        "jobs": jobs,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _train_teachers(configs: Sequence[TrainConfig[Any]]) -> None:
    """The teachers, one after the other, before runs that would each train the same one beside each other."""
    done = []
    for config in configs:
        made_from = (config.teacher, config.teacher_recipe, config.precision)
        if config.train_teacher and made_from not in done:
            runtime = make_runtime(precision=config.precision, channels_last=config.channels_last, threads=1)
            test = load_split(str(config.data), "test", image_size=config.image_size)
            load_teacher(config, test, runtime, on_step=lambda: None)
            done.append(made_from)


@contextmanager
def _sole(path: Path) -> Iterator[bool]:
    """Whether this process alone works on the run now; the lock goes with the process."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0] if names else platform.processor()
