"""Launches of the Triton kernels of `kd_kl` and `kd_kl_priority`; meanings: NATIVE.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from ..priority import launch as tree
from ..registration import AotCase
from .triton import backward_kernel, forward_kernel, priority_forward_kernel

MAX_COLS = 4096
TILE = 2048


def forward(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(kl, lse_student, lse_teacher), each (B,) float32."""
    results = _empty_results(student)
    rows, cols, num_warps = tile(student.shape[1])
    grid = (triton.cdiv(len(student), rows),)
    strides = (*student.stride(), *teacher.stride())
    forward_kernel[grid](
        student, teacher, *results, *student.shape, *strides, temperature, ROWS=rows, COLS=cols, num_warps=num_warps
    )
    return results


def priority_forward(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    indices: Tensor,
    is_weights: Tensor,
    leaves: Tensor,
    sums: Tensor,
    counts: Tensor,
    arrivals: Tensor,
    capacity: int,
    alpha: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward`, and in the same launch the rows' priorities into the tree."""
    if len(student) > tree.ONE_PROGRAM_ROWS:
        results = forward(student, teacher, temperature)
        tree.update(leaves, sums, counts, capacity, indices, results[0], is_weights, alpha, eps)
        return results
    results = _empty_results(student)
    rows, cols, _ = tile(student.shape[1])
    priority_forward_kernel[(triton.cdiv(len(student), rows),)](
        student,
        teacher,
        *results,
        *student.shape,
        *student.stride(),
        *teacher.stride(),
        temperature,
        indices,
        is_weights,
        leaves,
        sums,
        counts,
        arrivals,
        capacity,
        alpha,
        eps,
        OFFSETS=tree.level_offsets(capacity),
        TREE_ROWS=tree.ONE_PROGRAM["ROWS"],
        ROWS=rows,
        COLS=cols,
        num_warps=tree.ONE_PROGRAM["num_warps"],
    )
    return results


def _empty_results(student: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kl, lse_student, lse_teacher = (student.new_empty(len(student), dtype=torch.float32) for _ in range(3))
    return kl, lse_student, lse_teacher


def backward(
    grad_kl: Tensor,
    student: Tensor,
    teacher: Tensor,
    lse_student: Tensor,
    lse_teacher: Tensor,
    kl: Tensor,
    temperature: float,
    need_student: bool,
    need_teacher: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of both logits, contiguous; an empty (0,) for one that is not needed."""
    num_rows, num_classes = student.shape
    grad_student = student.new_empty((num_rows, num_classes) if need_student else 0)
    grad_teacher = teacher.new_empty((num_rows, num_classes) if need_teacher else 0)
    rows, cols, num_warps = tile(num_classes)
    backward_kernel[(triton.cdiv(num_rows, rows), triton.cdiv(num_classes, cols))](
        grad_kl.contiguous(),
        student,
        teacher,
        lse_student,
        lse_teacher,
        kl,
        grad_student,
        grad_teacher,
        num_rows,
        num_classes,
        *student.stride(),
        *teacher.stride(),
        temperature,
        NEED_STUDENT=need_student,
        NEED_TEACHER=need_teacher,
        ROWS=rows,
        COLS=cols,
        num_warps=num_warps,
    )
    return grad_student, grad_teacher


def tile(num_classes: int) -> tuple[int, int, int]:
    """(rows, columns, warps) of a program: whole rows up to 4096 classes, and several of them where they are short."""
    cols = min(triton.next_power_of_2(num_classes), MAX_COLS)
    rows = max(1, min(TILE // cols, 16))
    return rows, cols, 8 if rows * cols > TILE else 4


def aot_cases() -> Iterator[AotCase]:
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


def aot_corners() -> Iterator[AotCase]:
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
