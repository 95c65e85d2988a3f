"""Triton kernels of `kd_kl`: one read of both logit rows forward, one read and one write backward."""

import triton
import triton.language as tl

from ..priority.triton import update_kernel


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
def priority_forward_kernel(
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
    indices_ptr,  # (B,) int64
    is_weights_ptr,  # (B,) float32
    leaves_ptr,  # the priority tree, see priority/triton.py
    sums_ptr,
    counts_ptr,
    arrivals_ptr,  # (1,) int32, 0 before and after
    capacity,
    alpha,
    eps,
    OFFSETS: tl.constexpr,
    TREE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    forward_kernel(
        student_ptr,
        teacher_ptr,
        kl_ptr,
        lse_student_ptr,
        lse_teacher_ptr,
        num_rows,
        num_classes,
        student_row_stride,
        student_col_stride,
        teacher_row_stride,
        teacher_col_stride,
        temperature,
        ROWS,
        COLS,
    )
    # Rows of any program may share a slot or a block of the tree, so the leaves wait for all of them: the last program
    # to arrive writes them. Which one that is cannot be seen in what it writes.
    tl.debug_barrier()  # all of this program's stores come before its arrival
    if tl.atomic_add(arrivals_ptr, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
        tl.debug_barrier()
        update_kernel(
            leaves_ptr,
            sums_ptr,
            counts_ptr,
            indices_ptr,
            kl_ptr,
            is_weights_ptr,
            num_rows,
            capacity,
            alpha,
            eps,
            False,
            True,
            OFFSETS,
            TREE_ROWS,
        )
        tl.store(arrivals_ptr, 0)


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
