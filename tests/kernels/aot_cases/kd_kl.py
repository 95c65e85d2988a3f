"""Compile-only cases of `kd_kl` and `kd_kl_priority`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dfkd_kernels.kd_kl.launch import tile
from dfkd_kernels.kd_kl.triton import backward_kernel, forward_kernel, priority_forward_kernel
from dfkd_kernels.priority import launch as tree

from . import AotCase


def cases() -> Iterator[AotCase]:
    """Every dtype with few, many and very many classes; strides of contiguous and of transposed logits."""
    float32, float64, int32, int64 = torch.float32, torch.float64, torch.int32, torch.int64
    draw = (int64, float32, float32, float64, int64, int32, 1_000_000, 0.6, 1e-6)
    onto_tree = {"OFFSETS": tree.level_offsets(1_000_000), "TREE_ROWS": tree.ONE_PROGRAM["ROWS"]}
    onto_tree["num_warps"] = tree.ONE_PROGRAM["num_warps"]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for num_classes in (10, 1000, 21843):
            rows, cols, num_warps = tile(num_classes)
            options = {"ROWS": rows, "COLS": cols, "num_warps": num_warps}
            name = f"{str(dtype)[6:]}_{num_classes}"
            strides = (num_classes, 1, num_classes, 1)
            args: tuple[Any, ...] = (dtype, dtype, float32, float32, float32, 256, num_classes, *strides, 20.0)
            yield AotCase(f"kd_kl_forward_{name}", forward_kernel, args, options)
            yield AotCase(
                f"kd_kl_priority_forward_{name}", priority_forward_kernel, (*args, *draw), {**options, **onto_tree}
            )
            pointers = (float32, dtype, dtype, float32, float32, float32, dtype, dtype)
            args = (*pointers, 256, num_classes, *strides, 20.0)
            need = {"NEED_STUDENT": True, "NEED_TEACHER": True}
            yield AotCase(f"kd_kl_backward_{name}", backward_kernel, args, {**need, **options})


def corners() -> Iterator[AotCase]:
    """One row or class, strides of 1 and 0, one gradient alone, trees of one level and of four."""
    float32, float64, int32, int64, bfloat16 = torch.float32, torch.float64, torch.int32, torch.int64, torch.bfloat16
    for rows, classes, strides in (
        (1, 1, (1, 1, 1, 1)),
        (1, 10, (10, 1, 10, 1)),
        (6, 10, (1, 6, 1, 6)),
        (6, 10, (0, 1, 0, 1)),
        (512, 1, (1, 1, 1, 1)),
    ):
        tile_rows, tile_cols, num_warps = tile(classes)
        name, sizes = f"{rows}x{classes}_{'-'.join(map(str, strides))}", (rows, classes, *strides, 1.0)
        options = {"ROWS": tile_rows, "COLS": tile_cols, "num_warps": num_warps}
        for dtypes in ((float32, bfloat16), (bfloat16, bfloat16)):
            pair = f"{str(dtypes[0])[6:]}_{name}"
            args: tuple[Any, ...] = (*dtypes, float32, float32, float32, *sizes)
            yield AotCase(f"kd_kl_forward_{pair}", forward_kernel, args, options)
            for capacity in (1, 100, 64**3 + 1):
                onto = {"OFFSETS": tree.level_offsets(capacity), "TREE_ROWS": tree.ONE_PROGRAM["ROWS"]}
                onto["num_warps"] = tree.ONE_PROGRAM["num_warps"]
                draw = (int64, float32, float32, float64, int64, int32, capacity, 0.6, 1e-6)
                case = f"kd_kl_priority_forward_{pair}_{capacity}"
                yield AotCase(case, priority_forward_kernel, (*args, *draw), {**options, **onto})
            args = (float32, *dtypes, float32, float32, float32, *dtypes, *sizes)
            for student in (True, False):
                need = {"NEED_STUDENT": student, "NEED_TEACHER": not student}
                yield AotCase(f"kd_kl_backward_{student:d}_{pair}", backward_kernel, args, {**need, **options})
