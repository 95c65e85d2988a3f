"""Cells of the result tables: a run for each method, variant and seed, and the two hashes that identify a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import sklearn
import torch
from safetensors.torch import load_file

import dfkd_fast
from dfkd_fast.catalog import FACTS, METHODS
from dfkd_fast.config.record import config_hash
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.training.records.run_record import active_backends

PRESET = "digits"
QUICK = "digits-quick"
PRESET_PRECISION = "bf16"
"""the precision of the presets (`auto`) on a CPU with AVX512-BF16 or AMX, and on a GPU"""
THREADS = 1
GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"

TITLES = {name: facts.title + (" (real images)" if facts.real_images else "") for name, facts in FACTS.items()}
"""how tables call a method: as papers do, and what is not data-free in the strict sense is marked"""

REVISED = {"nayer": "2b79da0", "muse-s": "2b79da0", "muse": "2b79da0"}
"""by method: the last change of its numbers that its golden trajectory does not see; older runs are not of this recipe.
There the adversarial term, 0 in those trajectories, started an epoch later.
"""

Variants = dict[str, tuple[str, ...]]

_MUSE: Variants = {
    "without CAM": ("--method.cam-weight", "0"),
    "without embedding diversity": ("--method.ed-weight", "0", "--method.aed-weight", "0"),
}
ABLATIONS: dict[str, Variants] = {
    "nayer": {
        "without re-initialised noisy layers": ("--method.no-reset-noise",),
        "with the student in train mode, as released": ("--method.student-mode", "released"),
    },
    "muse-s": _MUSE,
    "muse": _MUSE,
    "ssdkd": {"without priorities": ("--method.no-priority-sampling",)},
    "msarc": {
        "without attention": ("--method.no-attention",),
        "without consistency": ("--method.msarc-weight", "0"),
        "without meta-learning": ("--method.start", "carry"),
    },
    "hidfd": {
        "without feature integration": ("--method.blend-weight", "0", "--method.trans-weight", "0"),
        "without category frequency smoothing": ("--method.reg-weight", "0"),
        "with class weights of mean 1": ("--method.reg-mean-one",),
        "without data inflation": ("--method.inflation", "1"),
        "without the teacher's classifier": ("--method.alignment", "kd"),
    },
}
"""by method: what each variant changes, as the flags behind `dfkd-fast train METHOD --preset digits`"""


@dataclass(frozen=True)
class Cell:
    """One run of a table."""

    method: str
    variant: str
    """what is changed, a key of `ABLATIONS`; empty: nothing"""
    seed: int
    precision: str = ""
    """of synthesis and student; the teacher is the preset's, trained in bf16. Empty: as the preset has it"""
    preset: str = PRESET

    @property
    def title(self) -> str:
        """The method as tables call it, with its variant and, where it is not the preset's, its precision."""
        where = f"in {self.precision}" if self.precision else ""
        what = "" if self.preset == PRESET else f"({self.preset})"
        return " ".join(filter(None, (TITLES[self.method], self.variant, where, what)))

    @property
    def flags(self) -> tuple[str, ...]:
        """What the variant changes, and the precision."""
        variant = ABLATIONS[self.method][self.variant] if self.variant else ()
        if not self.precision:
            return variant
        return (*variant, "--precision", self.precision, "--teacher-recipe.precision", PRESET_PRECISION)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The run's command line, behind `dfkd-fast`."""
        seed, threads = str(self.seed), str(THREADS)
        return ("train", self.method, "--preset", self.preset, *self.flags, "--seed", seed, "--threads", threads)

    def resolved(self) -> TrainConfig[Any]:
        """Every setting, as the preset has them now."""
        flags = ("--seed", str(self.seed), "--threads", str(THREADS))
        return load_config(default_config(self.method), preset=self.preset, flags=[*self.flags, *flags])


@dataclass(frozen=True)
class Recipe:
    """A cell with the settings that it has now, and what the run's numbers depend on."""

    cell: Cell
    config: TrainConfig[Any]

    @classmethod
    def of(cls, cell: Cell) -> Recipe:
        """Read the cell's preset."""
        return cls(cell, cell.resolved())

    @cached_property
    def recipe_hash(self) -> str:
        """Of what the run is asked to compute: method, every setting, seed, threads, and the method's own numbers.

        The code stands in it by the method's golden trajectory, which every change of its numbers must renew: to three
        digits, so that sums in another order repeat no run.
        """
        golden = GOLDEN / f"{METHODS[self.cell.method].partition(':')[0].split('.')[2]}.safetensors"
        values = load_file(golden) if golden.exists() else {}
        numbers = {name: [f"{value:.3g}" for value in values[name].flatten().tolist()] for name in sorted(values)}
        revised = {"revised": REVISED[self.cell.method]} if self.cell.method in REVISED else {}
        return _digest({"config": config_hash(self.config), "threads": THREADS, "golden": numbers, **revised})

    @cached_property
    def run_hash(self) -> str:
        """Of the recipe and what it is computed with: versions, processor features, precision, kernels."""
        config = self.config
        runtime = make_runtime(
            device=config.device,
            precision=config.precision,
            channels_last=config.channels_last,
            threads=config.threads,
        )
        versions = [dfkd_fast.__version__, torch.__version__, sklearn.__version__]
        where = [runtime.describe(), runtime.precision, active_backends(runtime)]
        return _digest({"recipe": self.recipe_hash, "versions": versions, "where": where})

    @property
    def folder_name(self) -> str:
        """Where the run lies in the cache: readable, and another for another hash."""
        cell = self.cell
        variant = cell.variant.replace(" ", "-")
        return "-".join(filter(None, (cell.method, variant, cell.precision, f"s{cell.seed}", self.run_hash)))


def method_cells(methods: list[str], seeds: list[int], precision: str = "", preset: str = PRESET) -> list[Cell]:
    """Every method as its preset has it, or in another precision; a seed of all before the next seed."""
    return [Cell(method, "", seed, precision, preset) for seed in seeds for method in methods]


def ablation_cells(methods: list[str], seeds: list[int]) -> list[Cell]:
    """Every variant of the methods that have some, each behind the method as it is."""
    return [
        Cell(method, variant, seed)
        for seed in seeds
        for method in methods
        if method in ABLATIONS
        for variant in ("", *ABLATIONS[method])
    ]


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
