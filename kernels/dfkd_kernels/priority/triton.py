"""Triton kernels of the priority tree: leaves, then the tree level by level; drawing is a single launch.

One program writes a batch's leaves and the tree above them in one launch (`update_kernel`, which also ends the launch
of `kd_kl_priority`); many rows take a launch for the leaves and one per level. Rows that share a slot meet in an
integer maximum, or each computes it; rows that share a block store the same value: no order of programs or threads can
change a result.
"""

import triton
import triton.language as tl

from .reference import FANOUT, LARGEST, SMALLEST

_SMALLEST = tl.constexpr(SMALLEST)
_LARGEST = tl.constexpr(LARGEST)
_FANOUT = tl.constexpr(FANOUT)


@triton.jit
def _magnitude(deltas_ptr, is_weights_ptr, row, in_batch, WEIGHTED: tl.constexpr):
    # .cg: past the first-level cache, since other programs of this launch may have written the deltas
    delta = tl.load(deltas_ptr + row, mask=in_batch, other=0.0, cache_modifier=".cg")
    if WEIGHTED:
        delta *= tl.load(is_weights_ptr + row, mask=in_batch, other=0.0)
    magnitude = tl.abs(delta)
    return tl.where(magnitude <= _LARGEST, magnitude, 0.0)  # also drops NaN


@triton.jit
def _leaf(magnitude, alpha, eps):
    return tl.minimum(tl.maximum(tl.exp(alpha * tl.log(magnitude + eps)), _SMALLEST), _LARGEST)


@triton.jit
def _refresh(
    values_ptr,  # children: leaves (float32) or a level of sums (float64)
    fills_ptr,  # the children's counts (int64), unused if IS_LEAF
    sums_ptr,  # this level of sums (float64)
    counts_ptr,  # this level of counts (int64)
    index,  # [ROWS] slots
    valid,  # [ROWS]
    SPAN: tl.constexpr,  # leaves below one entry of this level
    IS_LEAF: tl.constexpr,
):
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
def update_kernel(
    leaves_ptr,  # (slots,) float32
    sums_ptr,  # (entries,) float64, lowest level first
    counts_ptr,  # (entries,) int64
    indices_ptr,  # (n,) int64
    deltas_ptr,  # (n,) float32, unused if CLEAR
    is_weights_ptr,  # (n,) float32, read only if WEIGHTED
    num_rows,
    capacity,
    alpha,
    eps,
    CLEAR: tl.constexpr,
    WEIGHTED: tl.constexpr,
    OFFSETS: tl.constexpr,  # where each level starts in sums, lowest first
    ROWS: tl.constexpr,
):
    """Write all rows' leaves and refresh the tree above them: one program, whose barriers order its steps."""
    for start in range(0, num_rows, ROWS):
        row = start + tl.arange(0, ROWS)
        index = tl.load(indices_ptr + row, mask=row < num_rows, other=-1)
        # also before an update: its maximum is among this call's rows
        tl.store(leaves_ptr + index, tl.zeros([ROWS], tl.float32), mask=(index >= 0) & (index < capacity))
    tl.debug_barrier()
    if not CLEAR:
        bits_ptr = leaves_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
        for start in range(0, num_rows, ROWS):
            row = start + tl.arange(0, ROWS)
            index = tl.load(indices_ptr + row, mask=row < num_rows, other=-1)
            leaf = _leaf(_magnitude(deltas_ptr, is_weights_ptr, row, row < num_rows, WEIGHTED), alpha, eps)
            # positive floats keep their order as integers
            bits = leaf.to(tl.int32, bitcast=True)
            tl.atomic_max(bits_ptr + index, bits, mask=(index >= 0) & (index < capacity), sem="relaxed")
        tl.debug_barrier()
    for level in tl.static_range(len(OFFSETS)):
        for start in range(0, num_rows, ROWS):
            row = start + tl.arange(0, ROWS)
            index = tl.load(indices_ptr + row, mask=row < num_rows, other=-1)
            valid = (index >= 0) & (index < capacity)
            sums, counts = sums_ptr + OFFSETS[level], counts_ptr + OFFSETS[level]
            if level == 0:
                _refresh(leaves_ptr, counts_ptr, sums, counts, index, valid, _FANOUT, True)
            else:
                below = OFFSETS[level - 1]
                _refresh(
                    sums_ptr + below, counts_ptr + below, sums, counts, index, valid, _FANOUT ** (level + 1), False
                )
        tl.debug_barrier()


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
    leaf = tl.zeros([ROWS], tl.float32)
    if not CLEAR:
        # the largest |delta| among the rows of the same slot
        for start in range(0, num_rows, OTHERS):
            other = start + tl.arange(0, OTHERS)
            other_index = tl.load(indices_ptr + other, mask=other < num_rows, other=-1)
            magnitude = _magnitude(deltas_ptr, is_weights_ptr, other, other < num_rows, WEIGHTED)
            same = index[:, None] == other_index[None, :]
            leaf = tl.maximum(leaf, tl.max(tl.where(same, magnitude[None, :], 0.0), 1))
        leaf = _leaf(leaf, alpha, eps)
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
    _refresh(values_ptr, fills_ptr, sums_ptr, counts_ptr, index, valid, SPAN, IS_LEAF)


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
