"""Schedules that end at a budget, from measured costs of steps; kept in the cache, so that a stopped race goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from costs import SIDES, Costs
from recipes import Networks, config_of, flags_of, public, published, scaled

from dfkd_fast.config.record import write_config
from dfkd_fast.files.write import write_file

Measure = Callable[[str, Path, Path], Costs]
"""side, config file and log -> what its steps cost"""

FINENESS = 0.97
"""from one scale that is tried to the next smaller one"""
SMALLEST = 1e-4


@dataclass(frozen=True)
class Plan:
    """The scale of each side's schedule, and the processor seconds that are expected of each kind of run."""

    baseline_scale: float
    ours_scale: float
    baseline: float
    """seconds of the released style at its scale"""
    ours_steps: float
    """seconds of ours over the same steps"""
    ours_budget: float
    """seconds of ours at its own scale"""


def make_plan(
    method: str,
    networks: Networks,
    *,
    minutes: float,
    precision: str,
    image_size: int,
    cache: Path,
    measure: Measure,
) -> Plan:
    """Measure both sides and fit a schedule for each; or take what the cache has of an earlier call."""
    named = [method, asdict(public(networks)), minutes, precision, flags_of(method, public(networks), scale=1, seed=0)]
    key = sha256(json.dumps(named, default=str).encode()).hexdigest()[:12]
    file = cache / f"plan-{method}-{key}.json"
    if file.exists():
        return Plan(**json.loads(file.read_text())["plan"])
    cache.mkdir(parents=True, exist_ok=True)
    costs = {}
    for side in SIDES:
        more = ("--precision", precision) if side == "ours" else ()
        recipe = cache / f"plan-{method}-{key}-{side}.toml"
        write_config(config_of(method, flags_of(method, networks, scale=1, seed=0, more=more)), recipe)
        costs[side] = measure(side, recipe, recipe.with_suffix(".log"))

    whole = published(method)

    def seconds(side: str, scale: float) -> float:
        return costs[side].of(replace(whole, **scaled(method, whole, scale)), image_size=image_size)

    scales = {side: fitted(lambda scale, side=side: seconds(side, scale), 60 * minutes) for side in SIDES}
    theirs, ours = scales["released-style"], scales["ours"]
    plan = Plan(theirs, ours, seconds("released-style", theirs), seconds("ours", theirs), seconds("ours", ours))
    known = {"plan": asdict(plan), "costs": {side: asdict(each) for side, each in costs.items()}}
    write_file(file, json.dumps(known, indent=1) + "\n")
    return plan


def fitted(seconds: Callable[[float], float], budget: float) -> float:
    """The largest scale up to 1, the published schedule, that ends in time; the smallest where none does."""
    scale = 1.0
    while seconds(scale) > budget and scale > SMALLEST:
        scale *= FINENESS
    return scale


def measure_apart(side: str, recipe: Path, log: Path) -> Costs:
    """In a process of its own, with one thread."""
    command = [sys.executable, str(Path(__file__).with_name("costs.py")), side, str(recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the steps of {side} could not be timed, see {log}")
    return Costs(**json.loads(log.read_text(encoding="utf-8").splitlines()[-1]))
