"""Launches of the Triton kernels of `kd_kl` and `kd_kl_priority`; meanings: NATIVE.md."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..priority import launch as tree
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
