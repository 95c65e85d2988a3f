"""Interleaved timing: every round calls each variant once, so that a slow minute of the machine falls on all."""

import statistics
import time
from collections.abc import Callable

import torch

Variants = dict[str, Callable[[], object]]

FLUSH_BYTES = 1 << 30  # more than any level-2 cache; writing it also gives the host time to enqueue what is measured


class Stopwatch:
    """Seconds of one call of a variant, on the CPU or on the current CUDA device.

    On the CPU it is this process's processor time: what runs beside it on a shared machine still slows it down, through
    caches and memory, but what is not running is not counted. Alone, and with one thread, both clocks agree.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.scratch = torch.empty(FLUSH_BYTES if self.is_cuda else 0, dtype=torch.uint8, device=device)

    def time(self, call: Callable[[], object], inner: int) -> float:
        """Mean of `inner` calls in a row; on a GPU between two events, the level-2 cache flushed before the first."""
        if not self.is_cuda:
            start = time.process_time()
            for _ in range(inner):
                call()
            return (time.process_time() - start) / inner
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self.scratch.zero_()
        first.record()
        for _ in range(inner):
            call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3 / inner


class Race:
    """One sample of each variant per round, in an order that rotates."""

    def __init__(self, variants: Variants, device: torch.device, inner: int) -> None:
        self.variants, self.inner = list(variants.items()), inner
        self.stopwatch = Stopwatch(device)
        self.seconds: dict[str, list[float]] = {name: [] for name in variants}

    def warm_up(self, rounds: int) -> float:
        """Run every variant `rounds` times, unrecorded; returns what one further round takes, in seconds."""
        for _, call in self.variants * rounds:
            call()
        return sum(self.stopwatch.time(call, self.inner) * self.inner for _, call in self.variants)

    def round(self) -> None:
        """Measure each variant once."""
        self.variants.append(self.variants.pop(0))
        for name, call in self.variants:
            self.seconds[name].append(self.stopwatch.time(call, self.inner))


def graphed(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph: what is left without the host's time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def medians(variants: Variants, device: torch.device, rounds: int) -> dict[str, float]:
    """Seconds by variant."""
    race = Race(variants, device, inner=1)
    race.warm_up(3)
    for _ in range(rounds):
        race.round()
    return {name: statistics.median(samples) for name, samples in race.seconds.items()}
