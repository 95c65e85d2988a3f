"""What a run has cost, by the same measures that `--dry-run` foretells: FLOPs and MFU of its phases."""

from __future__ import annotations

from typing import Any

from dfkd_fast.config import TrainConfig
from dfkd_fast.costs.flops import count_step_flops
from dfkd_fast.costs.peak import matmul_rate
from dfkd_fast.costs.work import recipe_work
from dfkd_fast.loops.alternating import Progress
from dfkd_fast.methods.base import Method
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.runtime import Runtime


def run_costs(
    config: TrainConfig[Any], method: Method, info: ModelInfo, progress: Progress, runtime: Runtime
) -> dict[str, float]:
    """FLOPs of both phases in their plain formulation, of all ranks together, and the share of the device's rate of
    matrix products that they make up of the seconds spent.

    `info` is the teacher's. Takes up to some seconds, of which none counts as the run's.
    """
    work = recipe_work(method, config.stop_after_epoch)
    flops = count_step_flops(method, info, teacher=config.teacher, student=config.student)
    rate, seconds = matmul_rate(runtime), progress.seconds
    found = {"synthesis": flops.of_synthesis(work), "distillation": flops.of_distillation(work)}
    return {
        **{f"{phase}_flops": count * runtime.world_size for phase, count in found.items()},
        **{f"{phase}_mfu": count / (seconds[phase] * rate) for phase, count in found.items() if seconds[phase]},
        "matmul_flops_per_second": rate,
    }
