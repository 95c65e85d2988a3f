"""What the device can do at best: the rate of its matrix products, measured."""

from __future__ import annotations

import time

import torch

from dfkd_fast.runtime import Runtime

_SIDE = {"cpu": 1024, "cuda": 8192}
_TRIES = 8


@torch.no_grad()
def matmul_rate(runtime: Runtime) -> float:
    """FLOP/s of a large square matrix product in the run's compute dtype: the best of several, after one to warm up.

    A product of n x n matrices counts 2 n^3. On a CPU by processor time, so that what else is running does not count,
    with the threads that the run has. Takes a fraction of a second.
    """
    cuda = runtime.device.type == "cuda"
    clock, shares = (time.perf_counter, 1) if cuda else (time.process_time, torch.get_num_threads())
    side, device = _SIDE[runtime.device.type], runtime.device
    left, right = (torch.randn(side, side, device=device).to(runtime.compute_dtype) for _ in range(2))
    out, fastest = torch.empty_like(left), float("inf")
    for attempt in range(_TRIES + 1):
        runtime.synchronize()
        start = clock()
        torch.mm(left, right, out=out)
        runtime.synchronize()
        if attempt:
            fastest = min(fastest, (clock() - start) / shares)
    return 2 * side**3 / fastest
