"""Triton kernels of the priority tree: leaves, then one launch per level; drawing is a single launch. No atomics.

Rows that share a slot or a block compute and store the same value, so their order does not matter.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..registration import AotCase
from .reference import FANOUT, LARGEST, SMALLEST, level_sizes

ROWS = 16
OTHERS = 128
_SMALLEST = tl.constexpr(SMALLEST)
_LARGEST = tl.constexpr(LARGEST)
_FANOUT = tl.constexpr(FANOUT)


@triton.jit
def write_kernel(
    leaves_ptr,  # (slots,) float32
    indices_ptr,  # (n,) int64
    deltas_ptr,  # (n,) float32
    is_weights_ptr,  # (n,) float32, read only if WEIGHTED
    num_rows,
    capacity,
    alpha,
    eps,
    CLEAR: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    OTHERS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    index = tl.load(indices_ptr + row, mask=row < num_rows, other=-1)
    largest = tl.zeros([ROWS], tl.float32)
    if not CLEAR:
        # the largest |delta| among the rows of the same slot
        for start in range(0, num_rows, OTHERS):
            other = start + tl.arange(0, OTHERS)
            other_index = tl.load(indices_ptr + other, mask=other < num_rows, other=-1)
            delta = tl.load(deltas_ptr + other, mask=other < num_rows, other=0.0)
            if WEIGHTED:
                delta *= tl.load(is_weights_ptr + other, mask=other < num_rows, other=0.0)
            magnitude = tl.abs(delta)
            magnitude = tl.where(magnitude <= _LARGEST, magnitude, 0.0)  # also drops NaN
            same = index[:, None] == other_index[None, :]
            largest = tl.maximum(largest, tl.max(tl.where(same, magnitude[None, :], 0.0), 1))
        leaf = tl.exp(alpha * tl.log(largest + eps))
        leaf = tl.minimum(tl.maximum(leaf, _SMALLEST), _LARGEST)
    else:
        leaf = largest
    tl.store(leaves_ptr + index, leaf, mask=(index >= 0) & (index < capacity))


@triton.jit
def refresh_kernel(
    values_ptr,  # children: leaves (float32) or a level of sums (float64)
    fills_ptr,  # the children's counts (int64), unused if IS_LEAF
    sums_ptr,  # this level of sums (float64)
    counts_ptr,  # this level of counts (int64)
    indices_ptr,  # (n,) int64
    num_rows,
    capacity,
    SPAN: tl.constexpr,  # leaves below one entry of this level
    IS_LEAF: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    index = tl.load(indices_ptr + row, mask=row < num_rows, other=-1)
    valid = (index >= 0) & (index < capacity)
    node = index // SPAN
    child = node[:, None] * _FANOUT + tl.arange(0, _FANOUT)[None, :]
    value = tl.load(values_ptr + child, mask=valid[:, None], other=0.0).to(tl.float64)
    tl.store(sums_ptr + node, tl.sum(value, 1), mask=valid)
    if IS_LEAF:
        tl.store(counts_ptr + node, tl.sum((value > 0).to(tl.int64), 1), mask=valid)
    else:
        fill = tl.load(fills_ptr + child, mask=valid[:, None], other=0)
        tl.store(counts_ptr + node, tl.sum(fill, 1), mask=valid)


@triton.jit
def sample_kernel(
    leaves_ptr,  # (slots,) float32
    sums_ptr,  # (entries,) float64, lowest level first
    counts_ptr,  # (entries,) int64
    uniforms_ptr,  # (n,) float64
    indices_ptr,  # (n,) int64
    is_weights_ptr,  # (n,) float32
    num_rows,
    beta,
    OFFSETS: tl.constexpr,  # where each level starts in sums, lowest first
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    place = tl.arange(0, _FANOUT)
    depth: tl.constexpr = len(OFFSETS)
    total = tl.sum(tl.load(sums_ptr + OFFSETS[depth - 1] + place), 0)
    filled = tl.sum(tl.load(counts_ptr + OFFSETS[depth - 1] + place), 0)
    remainder = tl.load(uniforms_ptr + row, mask=row < num_rows, other=0.0) * total
    node = tl.zeros([ROWS], tl.int64)
    chosen = tl.zeros([ROWS], tl.float64)
    for step in tl.static_range(depth + 1):
        child = node[:, None] * _FANOUT + place[None, :]
        if step < depth:
            value = tl.load(sums_ptr + OFFSETS[depth - 1 - step] + child)
        else:
            value = tl.load(leaves_ptr + child).to(tl.float64)
        prefix = tl.cumsum(value, 1)
        # A parallel prefix sum need not be monotonic in the last bit: only a child that holds something may be chosen,
        # and where rounding leads past the last of them, the last one is.
        hit = (prefix > remainder[:, None]) & (value > 0)
        first_hit = tl.min(tl.where(hit, place[None, :], _FANOUT), 1)
        last_filled = tl.max(tl.where(value > 0, place[None, :], 0), 1)
        pick = tl.minimum(first_hit, last_filled)
        is_pick = place[None, :] == pick[:, None]
        remainder = tl.maximum(remainder - tl.sum(tl.where(is_pick, prefix - value, 0.0), 1), 0.0)
        chosen = tl.sum(tl.where(is_pick, value, 0.0), 1)
        node = node * _FANOUT + pick
    is_weight = tl.exp(-beta * tl.log(filled.to(tl.float64) * (chosen / total)))
    tl.store(indices_ptr + row, node, mask=row < num_rows)
    tl.store(is_weights_ptr + row, is_weight.to(tl.float32), mask=row < num_rows)


def update(
    leaves: Tensor,
    sums: Tensor,
    counts: Tensor,
    capacity: int,
    indices: Tensor,
    deltas: Tensor,
    is_weights: Tensor | None,
    alpha: float,
    eps: float,
) -> None:
    """Write the leaves of (|is_weights * deltas| + eps)^alpha and bring the tree up to date."""
    weighted = is_weights is not None
    _write(leaves, capacity, indices, deltas, is_weights, alpha, eps, CLEAR=False, WEIGHTED=weighted)
    _refresh(leaves, sums, counts, capacity, indices)


def clear(leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, indices: Tensor) -> None:
    """Empty slots and bring the tree up to date."""
    _write(leaves, capacity, indices, None, None, 0.0, 0.0, CLEAR=True, WEIGHTED=False)
    _refresh(leaves, sums, counts, capacity, indices)


def sample(
    leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, uniforms: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """(indices, is_weights) of one draw per uniform number."""
    indices = uniforms.new_empty(uniforms.shape, dtype=torch.int64)
    is_weights = uniforms.new_empty(uniforms.shape, dtype=torch.float32)
    sample_kernel[(triton.cdiv(len(uniforms), ROWS),)](
        leaves,
        sums,
        counts,
        uniforms,
        indices,
        is_weights,
        len(uniforms),
        beta,
        OFFSETS=level_offsets(capacity),
        ROWS=ROWS,
    )
    return indices, is_weights


def level_offsets(capacity: int) -> tuple[int, ...]:
    """Where each level starts in `sums` and `counts`, lowest level first."""
    sizes = level_sizes(capacity)
    return tuple(sum(sizes[:level]) for level in range(len(sizes)))


def _write(
    leaves: Tensor,
    capacity: int,
    indices: Tensor,
    deltas: Tensor | None,
    is_weights: Tensor | None,
    alpha: float,
    eps: float,
    **constants: bool,
) -> None:
    write_kernel[(triton.cdiv(len(indices), ROWS),)](
        leaves,
        indices,
        leaves if deltas is None else deltas,
        leaves if is_weights is None else is_weights,
        len(indices),
        capacity,
        alpha,
        eps,
        **constants,
        ROWS=ROWS,
        OTHERS=OTHERS,
    )


def _refresh(leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, indices: Tensor) -> None:
    values, fills, is_leaf = leaves, counts, True
    for level, offset in enumerate(level_offsets(capacity)):
        refresh_kernel[(triton.cdiv(len(indices), ROWS),)](
            values,
            fills,
            sums[offset:],
            counts[offset:],
            indices,
            len(indices),
            capacity,
            SPAN=FANOUT ** (level + 1),
            IS_LEAF=is_leaf,
            ROWS=ROWS,
        )
        values, fills, is_leaf = sums[offset:], counts[offset:], False


def aot_cases() -> Iterator[AotCase]:
    """Small and large capacities: the depth of the tree is a constant of the kernels."""
    float32, float64, int64 = torch.float32, torch.float64, torch.int64
    for clear, weighted in ((False, False), (False, True), (True, False)):
        args: tuple[Any, ...] = (float32, int64, float32, float32, 256, 1_000_000, 0.6, 1e-6)
        options: dict[str, Any] = {"CLEAR": clear, "WEIGHTED": weighted, "ROWS": ROWS, "OTHERS": OTHERS}
        yield AotCase(f"priority_write_clear{clear:d}_weighted{weighted:d}", write_kernel, args, options)
    for is_leaf in (True, False):
        pointers = (float32 if is_leaf else float64, int64, float64, int64, int64)
        options = {"SPAN": FANOUT if is_leaf else FANOUT**2, "IS_LEAF": is_leaf, "ROWS": ROWS}
        yield AotCase(f"priority_refresh_leaf{is_leaf:d}", refresh_kernel, (*pointers, 256, 1_000_000), options)
    for capacity in (5_000, 1_000_000, 100_000_000):
        args = (float32, float64, int64, float64, int64, float32, 256, 0.4)
        options = {"OFFSETS": level_offsets(capacity), "ROWS": ROWS}
        yield AotCase(f"priority_sample_{capacity}", sample_kernel, args, options)
