"""Peak throughput of the device: the rate of its matrix products, measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from dfkd_fast.device.runtime import Runtime

_TRIES = 5


@torch.no_grad()
def matmul_rate(runtime: Runtime) -> float:
    """FLOP/s of large matrix products in the run's compute dtype, a multiplication and an addition as two.

    On a GPU that of two 8192 x 8192 matrices. On a CPU that of two 1024 x 1024 matrices or of a 3x3 convolution of 256
    channels, whichever is faster: torch multiplies matrices by MKL and convolves by oneDNN, and on some processors the
    one uses half of what the other does. There seconds are processor time, so that what else is running does not count,
    divided by the run's threads. The best of several tries; takes a fraction of a second.
    """
    device, dtype = runtime.device, runtime.compute_dtype
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    rate = 2 * side**3 / _fastest(lambda: torch.mm(left, right), runtime)
    if device.type == "cpu":
        maps = torch.randn(4, 256, 28, 28).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(256, 256, 3, 3).to(dtype, memory_format=torch.channels_last)
        flops = 2 * maps.numel() * weight[0].numel()
        rate = max(rate, flops / _fastest(lambda: F.conv2d(maps, weight, padding=1), runtime))
    return rate


def _fastest(product: Callable[[], object], runtime: Runtime) -> float:
    """The least seconds of a call, after one to warm up."""
    cuda = runtime.device.type == "cuda"
    clock, threads = (time.perf_counter, 1) if cuda else (time.process_time, torch.get_num_threads())
    fastest = float("inf")
    for attempt in range(_TRIES + 1):
        runtime.synchronize()
        start = clock()
        product()
        runtime.synchronize()
        if attempt:
            fastest = min(fastest, (clock() - start) / threads)
    return fastest
