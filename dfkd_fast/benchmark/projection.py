"""From timed steps to a whole recipe: hours, FLOPs and MFU of its phases, as a record and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dfkd_fast.benchmark.step_profiler import Timings
from dfkd_fast.benchmark.step_timer import Quantiles
from dfkd_fast.costs.flops import StepFlops
from dfkd_fast.costs.work import Work
from dfkd_fast.device.runtime import Runtime

PHASES = ("synthesis", "distillation")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a recipe, all epochs together."""

    name: str
    steps: int
    flops: float
    """in the plain formulation, on all ranks together"""
    seconds: Quantiles
    """of one rank"""
    mfu: float
    """model FLOPs utilisation: share of the device's rate of matrix products that the plain formulation's FLOPs are"""
    hfu: float | None
    """hardware FLOPs utilisation: the same of the FLOPs that are computed in fact; None where those are not counted"""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "steps": self.steps,
            "flops": self.flops,
            "seconds": self.seconds.median,
            "seconds_least": self.seconds.least,
            "seconds_most": self.seconds.most,
            "mfu": self.mfu,
            "hfu": self.hfu,
        }


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What a recipe costs on this machine; compilation, evaluation and checkpoints come on top."""

    phases: tuple[Phase, Phase]
    images: int
    rounds: int
    warmup_seconds: float
    """of the first steps that were timed, compilation included"""
    peak_memory_bytes: int
    matmul_rate: float
    """FLOP/s of the device's matrix products in the compute dtype"""
    devices: int
    patience: int = 0
    """`--method.patience`; with any, rounds may take fewer steps, and all this is an upper bound"""
    counted_seconds: float = 0.0
    wall_seconds: float = 0.0
    """of all steps that were timed, by the clock that the figures are of and by the wall"""

    @property
    def slowdown(self) -> float:
        """How much longer the timed steps took by the wall: 1 on an idle machine."""
        return self.wall_seconds / self.counted_seconds if self.counted_seconds else 1.0

    @property
    def hours(self) -> Quantiles:
        """Hours of all devices together: GPU-hours, on a CPU hours of the process."""
        factor = self.devices / 3600
        seconds = [phase.seconds for phase in self.phases]
        return Quantiles(
            factor * sum(part.median for part in seconds),
            factor * sum(part.least for part in seconds),
            factor * sum(part.most for part in seconds),
        )

    @property
    def floor_hours(self) -> float:
        """The arithmetic floor: hours that the FLOPs take at the rate of matrix products."""
        return sum(phase.flops for phase in self.phases) / self.matmul_rate / 3600

    def record(self) -> dict[str, Any]:
        """As JSON."""
        hours = self.hours
        return {
            "hours": hours.median,
            "hours_least": hours.least,
            "hours_most": hours.most,
            "floor_hours": self.floor_hours,
            "images": self.images,
            "rounds": self.rounds,
            "warmup_seconds": self.warmup_seconds,
            "timed_seconds": self.counted_seconds,
            "timed_wall_seconds": self.wall_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "matmul_flops_per_second": self.matmul_rate,
            **({"is_upper_bound": True} if self.patience else {}),
            **{phase.name: phase.record() for phase in self.phases},
        }

    def lines(self, unit: str, *, predicted: bool = False) -> Iterator[str]:
        """A table of the phases; `unit` is what the hours are called. `predicted`: no step was timed, and the spread is
        from the datasheet's rates to steps without CUDA graphs.
        """
        times = ("predicted ms/step", "at peak to eager") if predicted else ("ms/step", "spread")
        rows: list[Sequence[str]] = [("phase", "steps", *times, "GFLOP/step", "MFU", "HFU", unit)]
        for phase in self.phases:
            per_step, seconds = 1e3 / max(phase.steps, 1), phase.seconds
            rows.append(
                (
                    phase.name,
                    f"{phase.steps:,}",
                    f"{per_step * seconds.median:,.1f}",
                    f"{per_step * seconds.least:,.1f} to {per_step * seconds.most:,.1f}",
                    f"{phase.flops / max(phase.steps, 1) / 1e9:,.1f}",
                    f"{100 * phase.mfu:.1f} %",
                    "-" if phase.hfu is None else f"{100 * phase.hfu:.1f} %",
                    f"{seconds.median * self.devices / 3600:,.3g}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            first, *rest = zip(row, widths, strict=True)
            yield "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])
        hours, flops = self.hours, sum(phase.flops for phase in self.phases)
        yield f"in all {hours.median:,.3g} {unit} ({hours.least:,.3g} to {hours.most:,.3g}), {flops:.3g} FLOP"
        yield f"  arithmetic floor {self.floor_hours:,.3g} at {self.matmul_rate / 1e12:,.3g} TFLOP/s of matrix products"
        if predicted:
            ends = f"; at most: --patience {self.patience} ends rounds early" if self.patience else ""
            yield f"  {self.images:,} images in {self.rounds:,} rounds{ends}; on top: evaluation, checkpoints, captures"
            return
        memory = self.peak_memory_bytes / 2**30
        yield f"  {self.images:,} images in {self.rounds:,} rounds, peak memory {memory:.2f} GiB"
        if self.patience:
            yield f"  at most: --patience {self.patience} ends rounds that no longer improve; how many is not predicted"
        yield f"  on top: compilation (first steps took {self.warmup_seconds:.1f} s), evaluation, checkpoints"


def project(
    work: Work, timings: Timings, flops: StepFlops, matmul_rate: float, runtime: Runtime, *, patience: int = 0
) -> Projection:
    """Scale timed steps up to `work`. Work, FLOPs and seconds are those of each rank."""
    devices, done = runtime.world_size, flops.done

    def share(count: float, seconds: Quantiles) -> float:
        return count / (seconds.median * matmul_rate) if seconds.median else 0.0

    def phase(name: str, steps: int, count: float, in_fact: float | None, seconds: Quantiles) -> Phase:
        hfu = None if in_fact is None else share(in_fact, seconds)
        mfu = share(count, seconds)
        return Phase(name=name, steps=steps, flops=count * devices, seconds=seconds, mfu=mfu, hfu=hfu)

    return Projection(
        phases=(
            phase(
                "synthesis",
                work.synthesis_steps.total(),
                flops.of_synthesis(work),
                None if done is None else done.of_synthesis(work),
                timings.synthesis_seconds(work),
            ),
            phase(
                "distillation",
                work.student_steps,
                flops.of_distillation(work),
                None if done is None else done.of_distillation(work),
                timings.student_seconds(work),
            ),
        ),
        images=work.images * runtime.shares,
        rounds=work.rounds.total(),
        warmup_seconds=timings.warmup,
        counted_seconds=timings.counted_seconds,
        wall_seconds=timings.wall_seconds,
        peak_memory_bytes=timings.peak_memory_bytes,
        matmul_rate=matmul_rate,
        devices=devices,
        patience=patience,
    )
