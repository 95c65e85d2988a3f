"""Launches of the Triton kernels of the priority tree; meanings: NATIVE.md."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

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
