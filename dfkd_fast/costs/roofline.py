"""Seconds that a kernel takes on a card: by what was measured there, else by the datasheet and an assumed efficiency.

A product takes as long as its arithmetic or its traffic, whichever is longer (Williams et al., Roofline, 2009), its
channels rounded up to what tensor cores multiply at once and a card that has more processors than it has tiles used in
part. Other kernels take as long as their traffic. None takes less than the smallest one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dfkd_fast.costs.cards import PRECISIONS, Card
from dfkd_fast.costs.kernels import PRODUCTS, Kernel
from dfkd_fast.costs.recorder import Part

_GRAIN = 8
"""channels are multiplied so many at a time"""
_TILE = (128, 64)
"""of a product's result, that one processor works on"""

GROUPS = {
    "convolutions": ("conv", "conv_input_grad", "conv_weight_grad", "conv_depthwise"),
    "matrix products": ("matmul",),
    "BatchNorm": ("batch_norm", "batch_norm_grad", "bn_act", "bn_act_grad"),
    "copies and casts": ("copy",),
    "optimiser": ("optimizer",),
    "pool, crops, gathers": ("gather", "random"),
    "elementwise and the rest": ("elementwise", "transcendental", "reduction", "pool"),
}
"""kinds as a table shows them"""
GAPS = "between kernels"
Host = Literal["graph", "ahead", "serial"]
"""how kernels are launched: replayed from a CUDA graph; one by one, while the card is busy with earlier ones, until it
has to wait for the host; by a CPU for itself, one after the other
"""


@dataclass
class Estimate:
    """Seconds of a part of a run."""

    by_kind: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """kind -> seconds that the device computes"""
    gaps: float = 0.0
    """seconds that it waits for the next kernel, or for the host"""

    @property
    def seconds(self) -> float:
        """In all."""
        return sum(self.by_kind.values()) + self.gaps

    def add(self, other: Estimate, times: float = 1.0) -> None:
        """Another part, so many times."""
        for kind, seconds in other.by_kind.items():
            self.by_kind[kind] += times * seconds
        self.gaps += times * other.gaps

    def by_group(self) -> dict[str, float]:
        """Seconds by what a table shows, what is between the kernels included."""
        groups = {group: sum(self.by_kind[kind] for kind in kinds) for group, kinds in GROUPS.items()}
        return groups | {GAPS: self.gaps}


def estimate(part: Part, card: Card, host: Host, *, single: str = "fp32") -> Estimate:
    """A part of a run on a card. `single` is what products of float32 are computed in, "fp32" or "tf32"."""
    found = Estimate()
    for kernel in part.kernels:
        found.by_kind[kernel.kind] += seconds(kernel, card, single=single)
    launches, views = part.launches, max(part.calls - part.launches, 0)
    found.gaps = 1e-6 * launches * card.launch_us
    if host == "ahead":
        issuing = 1e-6 * (launches * card.host_us + views * card.view_us + part.waits * card.wait_us)
        found.gaps = max(found.gaps, issuing - sum(found.by_kind.values()))
    elif host == "serial":
        found.gaps += 1e-6 * views * card.view_us
    return found


def seconds(kernel: Kernel, card: Card, *, single: str = "fp32") -> float:
    """Seconds of a kernel, or of a few that are launched for one operator, without what is between them."""
    points = _points(kernel, card, single)
    if points and kernel.kind in PRODUCTS:
        return product_seconds(kernel, points)
    if points:
        return kernel.launches * traffic_seconds(kernel.bytes / kernel.launches, points)
    traffic = kernel.bytes / (card.bandwidth * card.traffic[kernel.kind])
    return max(traffic, _arithmetic(kernel, card, single), kernel.launches * card.least_us * 1e-6)


def _points(kernel: Kernel, card: Card, single: str) -> list[list[float]]:
    """What was measured of its kind: in its dtype, else in the other of 16 bits, else (traffic) in float32."""
    halves = ("bfloat16", "float16") if kernel.dtype in ("bfloat16", "float16") else ()
    is_product = kernel.kind in PRODUCTS
    if is_product and single == "tf32" and not halves:
        return []  # float32 is measured as such
    names = (kernel.dtype, *halves, *(() if is_product and halves else ("float32",)))
    return next(
        (card.measured[f"{kernel.kind}/{name}"] for name in names if f"{kernel.kind}/{name}" in card.measured), []
    )


def traffic_seconds(count: float, points: Sequence[Sequence[float]]) -> float:
    """Between measured (bytes, seconds) along straight lines of their logarithms, in order of their bytes; beyond the
    last in proportion to the bytes, below the first as long as it.
    """
    if count <= points[0][0]:
        return points[0][1]
    if count >= points[-1][0]:
        return points[-1][1] * count / points[-1][0]
    above = next(index for index, point in enumerate(points) if point[0] > count)
    (low, before), (high, after) = points[above - 1], points[above]
    share = math.log(count / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(before) + share * math.log(after))


def product_seconds(kernel: Kernel, points: Sequence[Sequence[float]]) -> float:
    """By the rates of measured kernels of the same kind, weighted by how near their shapes are: the logarithm of the
    rate is their mean, each by the inverse fourth power of its distance, in octaves.
    """
    here, total, weights = _octaves(kernel.kind, kernel.shape), 0.0, 0.0
    for *shape, taken in points:
        apart = math.dist(here, _octaves(kernel.kind, shape))
        rate = flops_of(kernel.kind, shape) / taken
        weight = 1 / (apart**4 + 1e-3)
        total += weight * math.log(rate)
        weights += weight
    return kernel.flops / math.exp(total / weights)


def flops_of(kind: str, shape: Sequence[float]) -> float:
    """FLOPs of a kernel by its shape, as `Kernel.shape` has it."""
    if kind == "matmul":
        batch, m, n, k = shape
        return 2.0 * batch * m * n * k
    images, side, chans_in, chans_out, area, groups, _ = shape
    return 2.0 * images * side**2 * chans_in * chans_out * area / groups


def _octaves(kind: str, shape: Sequence[float]) -> tuple[float, ...]:
    if kind == "matmul":
        batch, m, n, k = shape
        return math.log2(batch), *sorted((math.log2(m), math.log2(n))), math.log2(k)
    images, side, chans_in, chans_out, area, groups, stride = shape
    channels = (math.log2(chans_in / groups), math.log2(chans_out / groups))
    return *channels, math.log2(side), math.log2(area), 3 * math.log2(stride), 0.3 * math.log2(images * groups)


def _arithmetic(kernel: Kernel, card: Card, single: str) -> float:
    if not kernel.flops:
        return 0.0
    precision = PRECISIONS.get(kernel.dtype, "fp32")
    rate = card.matmul[single if precision == "fp32" else precision] * card.products[kernel.kind]
    if kernel.kind == "conv_depthwise":
        return kernel.flops / (card.matmul["fp32"] * card.products[kernel.kind])
    m, n, k, batch = _product(kernel)
    padded = math.prod(math.ceil(size / _GRAIN) * _GRAIN / size for size in (n, k))
    tiles = batch * math.ceil(m / _TILE[0]) * math.ceil(n / _TILE[1])
    if kernel.kind == "conv_weight_grad":  # cut up along the pixels that are summed over
        tiles *= math.ceil(k / 1024)
    return kernel.flops * padded / rate / min(1.0, tiles / card.processors)


def _product(kernel: Kernel) -> tuple[int, int, int, int]:
    """m, n and k of the matrix product that a kernel comes to, and how many of them."""
    if kernel.kind == "matmul":
        batch, m, n, k = kernel.shape
        return m, n, k, batch
    images, side, chans_in, chans_out, area, groups, _ = kernel.shape
    pixels, chans_in, chans_out = images * side**2, chans_in // groups, chans_out // groups
    if kernel.kind == "conv_weight_grad":
        return chans_in * area, chans_out, pixels, groups
    if kernel.kind == "conv_input_grad":
        return pixels, chans_in, chans_out * area, groups
    return pixels, chans_out, chans_in * area, groups
