"""Seconds, FLOPs and memory of a recipe's steps, each recipe in processes of its own."""

from __future__ import annotations

import multiprocessing
import socket
import time
from multiprocessing.connection import Connection
from typing import Any

from axes import Point


def measure(point: Point, samples: int) -> dict[str, Any]:
    """A point's line, from as many fresh processes as it has ranks: their processor time together, the memory of the
    largest.
    """
    context, port = multiprocessing.get_context("spawn"), _free_port()
    ends = []
    for rank in range(point.ranks):
        here, there = context.Pipe(duplex=False)
        context.Process(target=_serve, args=(there, point, rank, port, samples), daemon=True).start()
        there.close()  # so that a process that dies is not waited for
        ends.append(here)
    found = [end.recv() for end in ends]
    line = found[0]
    for phase in line["seconds"]:
        line["seconds"][phase] = sum(part["seconds"][phase] for part in found)
    line["peak_memory_bytes"] = max(part["peak_memory_bytes"] for part in found)
    return line


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _serve(connection: Connection, point: Point, rank: int, port: int, samples: int) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    if point.ranks > 1:
        address = f"tcp://127.0.0.1:{port}"
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=point.ranks)
    connection.send(profile(point, samples))
    if point.ranks > 1:
        distributed.destroy_process_group()


def profile(point: Point, samples: int) -> dict[str, Any]:
    """Median processor seconds of the steps behind the warm-up and of a round beside them, with the FLOPs of a step."""
    from dfkd_fast.benchmark.step_profiler import profile_steps
    from dfkd_fast.benchmark.step_timer import TimingWindow
    from dfkd_fast.costs.flops import count_step_flops
    from dfkd_fast.device.runtime import make_runtime
    from dfkd_fast.training.records.run_record import machine_record

    runtime = make_runtime(device="cpu", precision="fp32", channels_last=True, threads=1)
    window = TimingWindow(warmup=2, samples=samples, clock=time.process_time)
    method, timings = profile_steps(point.config(), point.info(), runtime, window)
    flops = count_step_flops(method, point.info(), teacher=point.teacher, student=point.student)
    kind = next(kind for kind in timings.synthesis if not kind.warmup)
    (beside,) = (seconds for kind, seconds in timings.round.items() if not kind.warmup and not kind.later)
    return {
        "axis": point.axis,
        "method": point.method,
        "value": point.value,
        "teacher": point.teacher,
        "student": point.student,
        "batch_size": point.batch_size,
        "num_classes": point.num_classes,
        "image_size": point.image_size,
        "processes": point.ranks,
        "seconds": {
            "synthesis": timings.synthesis[kind].median,
            "student": timings.student.median,
            "beside a round's steps": beside,
        },
        "flops": {"synthesis": flops.synthesis[kind] * point.ranks, "student": flops.student * point.ranks},
        "peak_memory_bytes": timings.peak_memory_bytes,
        **machine_record(runtime),
    }
