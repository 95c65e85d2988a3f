"""Interleaved timing of code on one thread: every round runs each variant once, in an order that rotates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def medians(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Median seconds of one call of each variant, after one call that is not counted.

    The default clock counts the processor time of all threads, so that another process on the machine costs little.
    """
    order = list(variants.items())
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _, call in order:
        call()
    for _ in range(rounds):
        order.append(order.pop(0))
        for name, call in order:
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
