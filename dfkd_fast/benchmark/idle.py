"""Timing for an idle machine on one that may be busy: the choice of clock, and a warning where it matters."""

from __future__ import annotations

import os
import time

import torch

from dfkd_fast.benchmark.step_timer import Clock
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.files.limits import available_cores

MOST_SLOWER = 1.1
"""seconds by the wall to seconds of processor time: beyond it the machine had something else to do"""


def idle_clock(runtime: Runtime) -> Clock:
    """Processor time of the calling thread, where that is what computes: one process on a CPU. The thread takes part in
    everything that is spread over threads, so on an idle machine it is the time by the wall. Else, where a step waits
    for a device or for other ranks, the time by the wall.
    """
    alone_on_cpu = runtime.device.type == "cpu" and runtime.world_size == 1
    return time.thread_time if alone_on_cpu else time.perf_counter


def load_average() -> float:
    """Processes that ran or waited for a core in the last minute, in the mean; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def busy_line(runtime: Runtime, *, load: float, slowdown: float) -> str | None:
    """One line where other work ran beside what was timed; None on an idle machine.

    `load`: the average before anything was timed. `slowdown`: seconds by the wall to seconds of processor time.
    """
    threads = torch.get_num_threads() if runtime.device.type == "cpu" else 1
    others = f"load {load:.1f} on {available_cores()} cores before this"
    if slowdown > MOST_SLOWER:
        took = f"steps took {slowdown:.2f} times their processor time ({others})"
        return f"the machine is busy: {took}; what is shown is processor time, which an idle one would take"
    if load + threads > available_cores() + 0.5:
        taken = "time by the wall, of which an idle one takes less"
        shared = "processor time; an idle one, whose caches are not shared, may take less"
        shown = shared if idle_clock(runtime) is time.thread_time else taken
        return f"the machine is busy ({others}); what is shown is {shown}"
    return None
