"""Launches of the Triton kernels of the priority tree; meanings: NATIVE.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from ..registration import AotCase
from .reference import FANOUT, level_sizes
from .triton import refresh_kernel, sample_kernel, update_kernel, write_kernel

ROWS = 16
OTHERS = 128

ONE_PROGRAM_ROWS = 1024
"""up to which one program writes leaves and tree in one launch; it would take longer than several launches beyond"""
ONE_PROGRAM = {"ROWS": 64, "num_warps": 8}


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
    rows = (indices, deltas, leaves if is_weights is None else is_weights, len(indices), capacity, alpha, eps)
    _write((leaves, sums, counts), rows, CLEAR=False, WEIGHTED=is_weights is not None)


def clear(leaves: Tensor, sums: Tensor, counts: Tensor, capacity: int, indices: Tensor) -> None:
    """Empty slots and bring the tree up to date."""
    _write(
        (leaves, sums, counts), (indices, leaves, leaves, len(indices), capacity, 0.0, 0.0), CLEAR=True, WEIGHTED=False
    )


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


def _write(tree: tuple[Tensor, Tensor, Tensor], rows: tuple[Any, ...], **constants: bool) -> None:
    """`rows` are the kernels' arguments from `indices_ptr` to `eps`."""
    leaves, sums, counts = tree
    indices, _, _, num_rows, capacity, *_ = rows
    if num_rows <= ONE_PROGRAM_ROWS:
        update_kernel[(1,)](*tree, *rows, **constants, OFFSETS=level_offsets(capacity), **ONE_PROGRAM)
        return
    grid = (triton.cdiv(num_rows, ROWS),)
    write_kernel[grid](leaves, *rows, **constants, ROWS=ROWS, OTHERS=OTHERS)
    values, fills, is_leaf = leaves, counts, True
    for level, offset in enumerate(level_offsets(capacity)):
        entries = (sums[offset:], counts[offset:])
        span = FANOUT ** (level + 1)
        refresh_kernel[grid](
            values, fills, *entries, indices, num_rows, capacity, SPAN=span, IS_LEAF=is_leaf, ROWS=ROWS
        )
        values, fills, is_leaf = *entries, False


def aot_cases() -> Iterator[AotCase]:
    """Small and large capacities: the depth of the tree is a constant of the kernels."""
    float32, float64, int64 = torch.float32, torch.float64, torch.int64
    for clear, weighted in ((False, False), (False, True), (True, False)):
        name, constants = f"clear{clear:d}_weighted{weighted:d}", {"CLEAR": clear, "WEIGHTED": weighted}
        rows: tuple[Any, ...] = (int64, float32, float32, 256, 1_000_000, 0.6, 1e-6)
        options: dict[str, Any] = {**constants, "ROWS": ROWS, "OTHERS": OTHERS}
        yield AotCase(f"priority_write_{name}", write_kernel, (float32, *rows), options)
        options = {**constants, "OFFSETS": level_offsets(1_000_000), **ONE_PROGRAM}
        yield AotCase(f"priority_update_{name}", update_kernel, (float32, float64, int64, *rows), options)
    for is_leaf in (True, False):
        pointers = (float32 if is_leaf else float64, int64, float64, int64, int64)
        options = {"SPAN": FANOUT if is_leaf else FANOUT**2, "IS_LEAF": is_leaf, "ROWS": ROWS}
        yield AotCase(f"priority_refresh_leaf{is_leaf:d}", refresh_kernel, (*pointers, 256, 1_000_000), options)
    for capacity in (5_000, 1_000_000, 100_000_000):
        args = (float32, float64, int64, float64, int64, float32, 256, 0.4)
        options = {"OFFSETS": level_offsets(capacity), "ROWS": ROWS}
        yield AotCase(f"priority_sample_{capacity}", sample_kernel, args, options)


def aot_corners() -> Iterator[AotCase]:
    """One row, one slot, and trees of every depth."""
    float32, float64, int64 = torch.float32, torch.float64, torch.int64
    for capacity in (1, 64, 4097, 100_000_000):
        for rows in (1, 16, 256):
            name, offsets = f"{capacity}_{rows}", level_offsets(capacity)
            args: tuple[Any, ...] = (float32, float64, int64, float64, int64, float32, rows, 0.4)
            yield AotCase(f"priority_sample_{name}", sample_kernel, args, {"OFFSETS": offsets, "ROWS": ROWS})
            args = (int64, float32, float32, rows, capacity, 0.6, 1e-6)
            for clear in (True, False):
                constants: dict[str, Any] = {"CLEAR": clear, "WEIGHTED": not clear}
                options = {**constants, "OFFSETS": offsets, **ONE_PROGRAM}
                yield AotCase(
                    f"priority_update_{clear:d}_{name}", update_kernel, (float32, float64, int64, *args), options
                )
                options = {**constants, "ROWS": ROWS, "OTHERS": OTHERS}
                yield AotCase(f"priority_write_{clear:d}_{name}", write_kernel, (float32, *args), options)
            args = (float32, int64, float64, int64, int64, rows, capacity)
            options = {"SPAN": FANOUT, "IS_LEAF": True, "ROWS": ROWS}
            yield AotCase(f"priority_refresh_{name}", refresh_kernel, args, options)
