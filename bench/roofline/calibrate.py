"""Rates of kernels of each kind on this machine's device: points of a roofline (dfkd_fast/costs/cards.py).

Representative operators at a few sizes, of shapes that no method has in particular. On a CPU seconds are processor
time of one thread, the median of calls; on a GPU a CUDA graph of some calls is replayed, so that the host is not in it.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from representatives import CONVS, PRODUCTS, SIZES, Call, conv_calls, product_calls, traffic_calls
from torch import Tensor

from dfkd_fast.costs.kernels import Kernel
from dfkd_fast.costs.recorder import Part, Recorder

Points = dict[str, list[list[float]]]

COLD = 48 << 20
"""bytes that calls go through before they come to the same memory again: a step's kernels find theirs in no cache"""


def calibrate(
    device: str, dtypes: Sequence[torch.dtype], *, share: float = 1.0, repeats: int = 5, larger: int = 1
) -> dict[str, Any]:
    """Points by `kind/dtype`, and microseconds of what is between kernels. `share` of the shapes and sizes is timed;
    `larger` multiplies the images of a batch and the values of a tensor: a GPU needs more to be busy.
    """
    found: dict[str, list[list[float]]] = defaultdict(list)
    for dtype in dtypes:
        for key, point in _all_points(device, dtype, share, repeats, larger):
            found[key].append(point)
    points = {key: _merged(values) for key, values in found.items()}
    return {key: _rounded(value) for key, value in (points | _between(device, repeats)).items()}


def _rounded(value: Any) -> Any:
    return [_rounded(each) for each in value] if isinstance(value, list) else float(f"{value:.4g}")


def _all_points(
    device: str, dtype: torch.dtype, share: float, repeats: int, larger: int
) -> Iterator[tuple[str, list[float]]]:
    calls = [*conv_calls(_part(CONVS, share), device, dtype, larger)]
    calls += [*product_calls(_part(PRODUCTS, share), device, dtype)]
    for size in _part(SIZES, share):
        calls += [*traffic_calls(size * larger, device, dtype)]
    for call in calls:
        yield from _timed(call, device, dtype, repeats)


def _part(items: Sequence[Any], share: float) -> Sequence[Any]:
    return items[: max(2, round(len(items) * share))]


def _timed(
    make: Callable[[], Call], device: str, dtype: torch.dtype, repeats: int
) -> Iterator[tuple[str, list[float]]]:
    """A point of the kind of kernel that nearly all of a call is."""
    call, part, recorder = make(), Part(), Recorder()
    call()
    with recorder, recorder.into(part):
        call()
    first: Kernel = max(part.kernels, key=lambda kernel: kernel.bytes)
    kernels = [kernel for kernel in part.kernels if kernel.kind == first.kind]
    copies = max(1, min(40, COLD // sum(each.bytes for each in kernels)))
    taken = seconds_of([call, *(make() for _ in range(copies - 1))], device, repeats) / len(kernels)
    where = list(first.shape) if first.flops else [sum(each.bytes for each in kernels) / len(kernels)]
    yield f"{first.kind}/{str(dtype).removeprefix('torch.')}", [*map(float, where), taken]


def seconds_of(calls: Sequence[Call], device: str, repeats: int) -> float:
    """Seconds of a call: the median of rounds through all of them, of which short ones are timed several at once."""
    if device == "cuda":
        return _graph_seconds(calls, repeats)
    for call in calls:
        call()
    samples: list[float] = []
    while len(samples) < repeats:
        start, count = time.process_time(), 0
        while (taken := time.process_time() - start) < 1e-3 or not count:
            calls[(len(samples) + count) % len(calls)]()
            count += 1
        samples.append(taken / count)
    return statistics.median(samples)


def _graph_seconds(calls: Sequence[Call], repeats: int) -> float:
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    inner = [calls[index % len(calls)] for index in range(max(10, len(calls)))]
    with torch.cuda.graph(graph, stream=stream):
        for call in inner:
            call()
    samples = []
    for _ in range(repeats + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) / 1e3 / len(inner))
    return statistics.median(samples[1:])


def _merged(points: list[list[float]]) -> list[list[float]]:
    """In their order; traffic of several operators at one size, which differ in bytes, as it is: sorted, and where two
    are within a quarter of an octave one, the geometric mean.
    """
    if len(points[0]) > 2:
        return points
    merged: list[list[list[float]]] = []
    for point in sorted(points):
        if merged and point[0] < 1.19 * merged[-1][0][0]:
            merged[-1].append(point)
        else:
            merged.append([point])
    return [[statistics.geometric_mean(column) for column in zip(*group, strict=True)] for group in merged]


def _between(device: str, repeats: int) -> dict[str, Any]:
    """Microseconds between kernels of a graph, of the smallest kernel, of a launch by the host and of a view."""
    x = torch.ones(8, device=device)
    least = 1e6 * seconds_of([lambda: x + 1], device, repeats)
    host = 1e6 * _host_seconds(lambda y: y * 2, x) / 2  # forward and backward
    view = 1e6 * _host_seconds(lambda y: y.view(2, 4).view(8), x) / 4
    found = {"host_us": host, "view_us": view, "least_us": least if device == "cuda" else 0.0, "launch_us": 0.0}
    if device != "cuda":  # what autograd and Python add to an operator's own call, which the points have
        found["launch_us"] = max(host - least, 0.0)
    return found


def _host_seconds(operator: Callable[[Tensor], Tensor], x: Tensor, count: int = 100, repeats: int = 9) -> float:
    """Host's seconds of an operator's forward and backward pass, in a chain of many."""
    samples = []
    for _ in range(repeats):
        leaf = x.clone().requires_grad_()
        if x.is_cuda:
            torch.cuda.synchronize()
        start, y = time.process_time(), leaf
        for _ in range(count):
            y = operator(y)
        y.sum().backward()
        samples.append((time.process_time() - start) / count)
    return statistics.median(samples)
