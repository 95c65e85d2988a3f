"""Collectives over NCCL, by themselves and within a captured step: two ranks where there are two cards, else a world of
one. Rehearsed over gloo.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from step_report import open_report
from torch import Tensor, distributed, multiprocessing

from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.training.capture import WARM_UP_STEPS, make_runner


def collectives(rank: int, world: int, kind: str, folder: str) -> None:
    """What a rank of a run calls; raises where a result is wrong."""
    device = f"cuda:{rank}" if kind == "cuda" else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if kind == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        runtime = make_runtime(device=device, graphs=True)
        total = world * (world + 1) / 2
        value = torch.full((1000,), rank + 1.0, device=runtime.device)
        distributed.all_reduce(value)
        assert bool((value == total).all()), "all_reduce"
        runtime.barrier()
        step_by_step(runtime, total / world, rank)
    finally:
        distributed.destroy_process_group()


def step_by_step(runtime, mean: float, rank: int) -> None:
    """A student step's all-reduce, captured where there are graphs, and replayed."""
    own = torch.zeros(300, device=runtime.device)

    def step(value: Tensor) -> dict[str, Tensor]:
        own.copy_(value)
        if runtime.world_size > 1:
            runtime.average([own])
        else:  # the runtime has nothing to average: NCCL itself is what is tried
            distributed.all_reduce(own)
        return {"value": own.sum()}

    run = make_runner(step, runtime)
    for count in range(WARM_UP_STEPS + 3):
        terms = run("variant", torch.full((300,), (rank + 1.0) * count, device=runtime.device))
        found = float(terms["value"])
        assert abs(found - 300 * mean * count) <= 1e-3 * (1 + found), f"captured all_reduce, step {count}: {found}"


def main() -> int:
    """One row, which says how many ranks there were."""
    report = open_report("ranks", __doc__)
    world = 1 if report.rehearse else min(2, torch.cuda.device_count())
    if world == 0 or (not report.rehearse and not distributed.is_nccl_available()):
        report.not_run("nccl", "no card, or a torch without NCCL")
        return report.status()
    with tempfile.TemporaryDirectory() as folder:
        if world == 1:
            collectives(0, 1, report.device, folder)
        else:
            multiprocessing.spawn(collectives, (world, report.device, folder), nprocs=world)
    report.row("gloo" if report.rehearse else "nccl", ranks=world)
    if not report.rehearse and world == 1:
        report.not_run("nccl between two cards", "there is one card")
    return report.status()


if __name__ == "__main__":
    sys.exit(main())
