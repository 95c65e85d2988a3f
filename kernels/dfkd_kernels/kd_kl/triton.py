"""Triton kernels of `kd_kl`: one read of both logit rows forward, one read and one write backward."""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..registration import AotCase

MAX_COLS = 4096
TILE = 2048


@triton.jit
def forward_kernel(
    student_ptr,  # (B, K), any strides
    teacher_ptr,  # (B, K), any strides
    kl_ptr,  # (B,) float32
    lse_student_ptr,  # (B,) float32
    lse_teacher_ptr,  # (B,) float32
    num_rows,
    num_classes,
    student_row_stride,
    student_col_stride,
    teacher_row_stride,
    teacher_col_stride,
    temperature,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < num_rows
    # rows past the end repeat the last one, so that no lane computes inf - inf
    row = tl.minimum(row, num_rows - 1).to(tl.int64)
    max_s = tl.full([ROWS], float("-inf"), tl.float32)
    max_t = tl.full([ROWS], float("-inf"), tl.float32)
    sum_s = tl.zeros([ROWS], tl.float32)
    sum_t = tl.zeros([ROWS], tl.float32)
    cross = tl.zeros([ROWS], tl.float32)  # sum of exp(t - max_t) (t - s)
    for start in range(0, num_classes, COLS):
        col = start + tl.arange(0, COLS).to(tl.int64)
        inside = (col < num_classes)[None, :]
        s_offset = row[:, None] * student_row_stride + col[None, :] * student_col_stride
        t_offset = row[:, None] * teacher_row_stride + col[None, :] * teacher_col_stride
        s = tl.load(student_ptr + s_offset, mask=inside, other=0.0).to(tl.float32) / temperature
        t = tl.load(teacher_ptr + t_offset, mask=inside, other=0.0).to(tl.float32) / temperature
        new_max_s = tl.maximum(max_s, tl.max(tl.where(inside, s, float("-inf")), 1))
        new_max_t = tl.maximum(max_t, tl.max(tl.where(inside, t, float("-inf")), 1))
        exp_s = tl.where(inside, tl.exp(s - new_max_s[:, None]), 0.0)
        exp_t = tl.where(inside, tl.exp(t - new_max_t[:, None]), 0.0)
        rescale_t = tl.exp(max_t - new_max_t)
        sum_s = sum_s * tl.exp(max_s - new_max_s) + tl.sum(exp_s, 1)
        sum_t = sum_t * rescale_t + tl.sum(exp_t, 1)
        cross = cross * rescale_t + tl.sum(exp_t * (t - s), 1)
        max_s = new_max_s
        max_t = new_max_t
    log_s = tl.log(sum_s)
    log_t = tl.log(sum_t)
    # differences of like terms: nothing cancels when the two rows are close
    kl = temperature * temperature * (cross / sum_t + (max_s - max_t) + (log_s - log_t))
    tl.store(kl_ptr + row, kl, mask=valid)
    tl.store(lse_student_ptr + row, max_s + log_s, mask=valid)
    tl.store(lse_teacher_ptr + row, max_t + log_t, mask=valid)


@triton.jit
def backward_kernel(
    grad_kl_ptr,  # (B,) float32
    student_ptr,  # (B, K), any strides
    teacher_ptr,  # (B, K), any strides
    lse_student_ptr,  # (B,) float32
    lse_teacher_ptr,  # (B,) float32
    kl_ptr,  # (B,) float32
    grad_student_ptr,  # (B, K) contiguous
    grad_teacher_ptr,  # (B, K) contiguous
    num_rows,
    num_classes,
    student_row_stride,
    student_col_stride,
    teacher_row_stride,
    teacher_col_stride,
    temperature,
    NEED_STUDENT: tl.constexpr,
    NEED_TEACHER: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = row < num_rows
    row = tl.minimum(row, num_rows - 1).to(tl.int64)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS).to(tl.int64)
    inside = valid[:, None] & (col < num_classes)[None, :]
    s_offset = row[:, None] * student_row_stride + col[None, :] * student_col_stride
    t_offset = row[:, None] * teacher_row_stride + col[None, :] * teacher_col_stride
    s = tl.load(student_ptr + s_offset, mask=inside, other=0.0).to(tl.float32) / temperature
    t = tl.load(teacher_ptr + t_offset, mask=inside, other=0.0).to(tl.float32) / temperature
    log_q = s - tl.load(lse_student_ptr + row)[:, None]
    log_p = t - tl.load(lse_teacher_ptr + row)[:, None]
    # outside the row 0 stands for the logit, and exp(0 - lse) may overflow
    p = tl.exp(tl.where(inside, log_p, 0.0))
    scale = temperature * tl.load(grad_kl_ptr + row)[:, None]
    out_offset = row[:, None] * num_classes + col[None, :]
    if NEED_STUDENT:
        q = tl.exp(tl.where(inside, log_q, 0.0))
        grad = scale * (q - p)
        tl.store(grad_student_ptr + out_offset, grad.to(grad_student_ptr.dtype.element_ty), mask=inside)
    if NEED_TEACHER:
        kl = tl.load(kl_ptr + row)[:, None] / (temperature * temperature)
        grad = scale * p * (log_p - log_q - kl)
        tl.store(grad_teacher_ptr + out_offset, grad.to(grad_teacher_ptr.dtype.element_ty), mask=inside)


def forward(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(kl, lse_student, lse_teacher), each (B,) float32."""
    num_rows, num_classes = student.shape
    kl, lse_student, lse_teacher = (student.new_empty(num_rows, dtype=torch.float32) for _ in range(3))
    rows, cols, num_warps = tile(num_classes)
    forward_kernel[(triton.cdiv(num_rows, rows),)](
        student,
        teacher,
        kl,
        lse_student,
        lse_teacher,
        num_rows,
        num_classes,
        *student.stride(),
        *teacher.stride(),
        temperature,
        ROWS=rows,
        COLS=cols,
        num_warps=num_warps,
    )
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
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for num_classes in (10, 1000, 21843):
            rows, cols, num_warps = tile(num_classes)
            options = {"ROWS": rows, "COLS": cols, "num_warps": num_warps}
            name = f"{str(dtype)[6:]}_{num_classes}"
            strides = (num_classes, 1, num_classes, 1)
            float32 = torch.float32
            args: tuple[Any, ...] = (dtype, dtype, float32, float32, float32, 256, num_classes, *strides, 20.0)
            yield AotCase(f"kd_kl_forward_{name}", forward_kernel, args, options)
            pointers = (float32, dtype, dtype, float32, float32, float32, dtype, dtype)
            args = (*pointers, 256, num_classes, *strides, 20.0)
            need = {"NEED_STUDENT": True, "NEED_TEACHER": True}
            yield AotCase(f"kd_kl_backward_{name}", backward_kernel, args, {**need, **options})
