"""Compile-only cases of the priority tree's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dfkd_kernels.priority.launch import ONE_PROGRAM, OTHERS, ROWS, level_offsets
from dfkd_kernels.priority.reference import FANOUT
from dfkd_kernels.priority.triton import refresh_kernel, sample_kernel, update_kernel, write_kernel

from . import AotCase


def cases() -> Iterator[AotCase]:
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


def corners() -> Iterator[AotCase]:
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
