"""The cost of a finished run, by the same measures that `--dry-run` predicts: FLOPs, MFU and HFU of its phases."""

from __future__ import annotations

from dfkd_fast.costs.flops import StepFlops
from dfkd_fast.costs.peak import matmul_rate
from dfkd_fast.costs.work import Work
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.training.loop import Progress


def run_costs(
    work: Work, flops: StepFlops, progress: Progress, runtime: Runtime, *, patience: int = 0
) -> dict[str, float]:
    """FLOPs of both phases in their plain formulation, of all ranks together, and the share of the device's rate of
    matrix products that they (MFU), and those that were computed in fact (HFU), make up of the seconds spent.

    `work` and `flops` are a rank's. With `patience` the recipe is an upper bound: its synthesis counts in proportion to
    the steps that were taken, as if rounds of all kinds had ended alike. Takes a fraction of a second, which does not
    count as the run's.
    """
    rate, seconds = matmul_rate(runtime), progress.seconds
    planned, taken = work.synthesis_steps.total(), progress.counts["generator_steps"]
    share = taken / planned if patience and planned else 1.0
    assert flops.done is not None, "counted"
    found, done = (
        {"synthesis": share * each.of_synthesis(work), "distillation": each.of_distillation(work)}
        for each in (flops, flops.done)
    )
    return {
        **{f"{phase}_flops": count * runtime.world_size for phase, count in found.items()},
        **{f"{phase}_mfu": count / (seconds[phase] * rate) for phase, count in found.items() if seconds[phase]},
        **{f"{phase}_hfu": count / (seconds[phase] * rate) for phase, count in done.items() if seconds[phase]},
        "matmul_flops_per_second": rate,
    }
