"""Predict the time of a recipe on a card that is not here: its recorded kernels on a roofline. Nothing is timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from dfkd_fast.benchmark.projection import Projection, project
from dfkd_fast.benchmark.recorded_steps import Recording, record_steps
from dfkd_fast.benchmark.step_profiler import Timings
from dfkd_fast.benchmark.step_timer import Quantiles
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.cards import Card, precision_on
from dfkd_fast.costs.recorder import Part
from dfkd_fast.costs.roofline import Estimate, estimate
from dfkd_fast.costs.work import Work, recipe_work
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.pool.storage import DEVICE_SHARE

UNIT = "predicted GPU-hours"
OVERHEAD_BYTES = 600 * 2**20
"""what the driver, its libraries and their workspaces hold of a card's memory, about"""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Hours of a recipe on a card; see `lines`."""

    card: Card
    precision: str
    graphs: bool
    projection: Projection
    phases: dict[str, Estimate]
    """the device's seconds of each phase, all steps together, by kind of kernel"""
    pool_bytes: int
    pool_on_card: bool

    @property
    def memory_bytes(self) -> int:
        """That the card has to have."""
        return self.projection.peak_memory_bytes + OVERHEAD_BYTES

    def record(self) -> dict[str, Any]:
        """As JSON."""
        where = {"card": self.card.name, "rates": self.card.rates_from, "cuda_graphs": self.graphs}
        shares = {name: _shares(found) for name, found in self.phases.items()}
        memory = {"memory_bytes": self.memory_bytes, "pool_bytes": self.pool_bytes, "pool_on_card": self.pool_on_card}
        return {"is_prediction": True} | where | self.projection.record() | memory | {"shares": shares}

    def lines(self) -> Iterator[str]:
        """A table of the phases, each line of hours said to be predicted."""
        yield from self.projection.lines(UNIT, predicted=True)
        for name, found in self.phases.items():
            if found.seconds:
                shares = ", ".join(
                    f"{group} {100 * part:.0f} %" for group, part in _shares(found).items() if part > 0.005
                )
                yield f"  {name}, predicted shares: {shares}"
        needed, has = self.memory_bytes / 2**30, self.card.memory_gb * 1e9 / 2**30
        fits = "" if needed <= has else ": it does NOT fit; lower --synthesis-batch-size or --batch-size"
        yield f"  predicted memory {needed:.1f} GiB of {has:.0f}{fits}"
        if not self.pool_on_card:
            yield f"  the pool, {self.pool_bytes / 1e9:.1f} GB, would lie in the host's memory"
        yield f"  a prediction from recorded kernels and {self.card.rates_from}; nothing was run on such a card"


def predict(config: TrainConfig[Any], info: ModelInfo, card: Card, *, graphs: bool = True) -> Prediction:
    """Record a recipe's steps and say what they come to on a card, one of them. Raises UserError for what the card
    does not compute.
    """
    runtime = runtime_on(card, precision=config.precision, channels_last=config.channels_last)
    method, recording, flops = record_steps(config, info, runtime, backend="triton")
    work = recipe_work(method, flops.round_steps)
    on_card = recording.pool_bytes <= DEVICE_SHARE * card.memory_gb * 1e9
    single = "tf32" if runtime.precision == "tf32" else "fp32"
    guess = _Guess(recording, card, graphs=graphs, single=single, pool_on_card=on_card)
    ways = [
        guess.timings(work),
        replace(guess, card=card.fastest()).timings(work),
        replace(guess, graphs=False).timings(work),
    ]
    peak = recording.peak_bytes - (0 if on_card else recording.pool_bytes)
    timings = _spread(*ways, peak=peak)
    patience = config.method.patience
    projection = project(work, timings, flops, card.matmul[runtime.precision], runtime, patience=patience)
    return Prediction(
        card=card,
        precision=runtime.precision,
        graphs=graphs,
        projection=projection,
        phases=guess.phases(work),
        pool_bytes=recording.pool_bytes,
        pool_on_card=on_card,
    )


def runtime_on(card: Card, *, precision: str, channels_last: bool) -> Runtime:
    """What stands for a run's runtime on a card: of the CPU, where tensors without values lie."""
    return Runtime(device=torch.device("cpu"), precision=precision_on(card, precision), channels_last=channels_last)


@dataclass(frozen=True)
class _Guess:
    """Estimates of a recording's parts."""

    recording: Recording
    card: Card
    graphs: bool
    single: str
    pool_on_card: bool

    def of(self, part: Part, *, captured: bool) -> Estimate:
        return estimate(part, self.card, "graph" if self.graphs and captured else "ahead", single=self.single)

    def student(self) -> Estimate:
        found = self.of(self.recording.student, captured=True)
        found.add(self.feed())
        return found

    def feed(self) -> Estimate:
        """A batch's way out of the pool: the host enqueues it while the card is busy."""
        found = estimate(self.recording.feed, self.card, "graph", single=self.single)
        if not self.pool_on_card:
            found.gaps += sum(each.bytes for each in self.recording.feed.kernels) / self.card.host_bandwidth
        return found

    def timings(self, work: Work) -> Timings:
        rounds = {kind: self.of(part, captured=False).seconds for kind, part in self.recording.round.items()}
        return Timings(
            synthesis={
                kind: _one(self.of(part, captured=True).seconds) for kind, part in self.recording.synthesis.items()
            },
            round={kind: rounds.get(kind, 0.0) for kind in work.rounds},
            student=_one(self.student().seconds),
        )

    def phases(self, work: Work) -> dict[str, Estimate]:
        synthesis, distillation = Estimate(), Estimate()
        for kind, steps in work.synthesis_steps.items():
            synthesis.add(self.of(self.recording.synthesis[kind], captured=True), steps)
        for round_kind, count in work.rounds.items():
            synthesis.add(self.of(self.recording.round[round_kind], captured=False), count)
        distillation.add(self.student(), work.student_steps)
        return {"synthesis": synthesis, "distillation": distillation}


def _one(seconds: float) -> Quantiles:
    return Quantiles(seconds, seconds, seconds)


def _spread(likely: Timings, least: Timings, most: Timings, *, peak: int) -> Timings:
    """The likely seconds, with those at the datasheet's rates and those without CUDA graphs as their range."""

    def wide(middle: Quantiles, low: Quantiles, high: Quantiles) -> Quantiles:
        return Quantiles(middle.median, min(low.median, middle.median), max(high.median, middle.median))

    return Timings(
        synthesis={
            kind: wide(middle, least.synthesis[kind], most.synthesis[kind]) for kind, middle in likely.synthesis.items()
        },
        round=likely.round,
        student=wide(likely.student, least.student, most.student),
        peak_memory_bytes=peak,
    )


def _shares(found: Estimate) -> dict[str, float]:
    return {group: part / (found.seconds or 1.0) for group, part in found.by_group().items()}
