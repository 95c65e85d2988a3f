"""`kd_kl` and `kd_kl_priority`: the distillation loss per row, with gradients to both logits."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..backend import native_ops, pick
from ..checks import check_float, check_range, check_same_device, check_vector
from ..priority.ops import PrioritySampler
from ..registration import Operator, once_differentiable
from . import reference

Reduction = Literal["none", "mean", "sum", "batchmean"]
REDUCTIONS = get_args(Reduction)


def kd_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, reduction: Reduction = "none"
) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) (Hinton et al., 2015), both logit rows read once.

    Args:
        student_logits, teacher_logits: (B, K), finite, floating; their dtypes may differ. Gradients flow to both.
        temperature: T > 0.
        reduction: "none", "sum" or "mean" over the rows; "batchmean", `F.kl_div`'s name for that mean, is the same.

    Returns:
        (B,) for "none", else a scalar; float32, or float64 if either input is float64.

    Raises:
        ValueError: a wrong shape, dtype, device, temperature or reduction, named; an empty batch.
    """
    _check_logits(student_logits, teacher_logits, temperature)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r}: choose none, mean, sum or batchmean")
    backend = _backend(student_logits, teacher_logits)
    if backend == "reference":
        kl = reference.kd_kl(student_logits, teacher_logits, temperature)
    else:
        kl = _KdKl.apply(student_logits, teacher_logits, float(temperature), backend)
    return _reduce(kl, reduction)


def kd_kl_priority(
    student_logits: Tensor,
    teacher_logits: Tensor,
    indices: Tensor,
    is_weights: Tensor,
    sampler: PrioritySampler,
    temperature: float = 1.0,
) -> Tensor:
    """`kd_kl` of each row; in the same pass the new priorities go back to the sampler (SSD-KD, Eq. 4-6, Alg. 1).

    With delta = is_weights * KL, without gradient, the leaf of the row's slot becomes (|delta| + eps)^alpha; a slot
    drawn twice gets the larger one.

    Args:
        student_logits, teacher_logits, temperature: as in `kd_kl`.
        indices, is_weights: (B,), one draw of `sampler.sample(B)`.

    Returns:
        the KL of each row, (B,), not weighted; differentiable.

    Raises:
        ValueError: as `kd_kl`; indices or is_weights of a wrong shape, dtype or device, an index outside the sampler.
    """
    _check_logits(student_logits, teacher_logits, temperature)
    check_vector("indices", indices, torch.int64, len(student_logits))
    check_vector("is_weights", is_weights, torch.float32, len(student_logits))
    check_same_device("indices", indices, "student_logits", student_logits)
    check_same_device("is_weights", is_weights, "student_logits", student_logits)
    check_same_device("sampler", sampler.leaves, "student_logits", student_logits)
    backend = _backend(student_logits, teacher_logits)
    if backend == "reference" or sampler.backend() != backend:
        kl = kd_kl(student_logits, teacher_logits, temperature)
        sampler.write_back(indices, kl.detach(), is_weights)
        return kl
    result: Tensor = _KdKl.apply(
        student_logits, teacher_logits, float(temperature), backend, indices, is_weights, *sampler.destination()
    )
    return result


class _KdKl(torch.autograd.Function):
    """Saves both logits and two numbers per row; the gradients need no other memory."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, temperature: float, backend: str, *write_back: Any
    ) -> Tensor:
        operator = _priority_forward if write_back else _forward
        kl, lse_student, lse_teacher = operator(student, teacher, temperature, *write_back, backend)
        ctx.save_for_backward(student, teacher, lse_student, lse_teacher, kl)
        ctx.temperature, ctx.backend, ctx.constants = temperature, backend, 2 + len(write_back)
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        need_student, need_teacher = ctx.needs_input_grad[:2]
        grad_student, grad_teacher = _backward(
            grads[0], *ctx.saved_tensors, ctx.temperature, need_student, need_teacher, ctx.backend
        )
        return (
            grad_student if need_student else None,
            grad_teacher if need_teacher else None,
            *(None for _ in range(ctx.constants)),
        )


def _launch_forward(student: Tensor, teacher: Tensor, temperature: float, backend: str) -> tuple[Tensor, ...]:
    if backend == "native":
        return native_ops().kd_kl_forward(student.contiguous(), teacher.contiguous(), temperature)
    from . import launch

    return launch.forward(student, teacher, temperature)


def _launch_priority_forward(
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
    backend: str,
) -> tuple[Tensor, ...]:
    check_range("indices", indices, capacity)
    draw, tree = (indices.contiguous(), is_weights.contiguous()), (leaves, sums, counts)
    if backend == "native":
        logits = (student.contiguous(), teacher.contiguous())
        return native_ops().kd_kl_priority_forward(*logits, *draw, *tree, capacity, temperature, alpha, eps)
    from . import launch

    return launch.priority_forward(student, teacher, temperature, *draw, *tree, arrivals, capacity, alpha, eps)


def _launch_backward(
    grad_kl: Tensor,
    student: Tensor,
    teacher: Tensor,
    lse_student: Tensor,
    lse_teacher: Tensor,
    kl: Tensor,
    temperature: float,
    need_student: bool,
    need_teacher: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    rows = (lse_student, lse_teacher, kl)
    grad_kl = grad_kl.contiguous()  # the gradient of a mean is one number, expanded
    if backend == "native":
        logits = (student.contiguous(), teacher.contiguous())
        return native_ops().kd_kl_backward(grad_kl, *logits, *rows, temperature, need_student, need_teacher)
    from . import launch

    return launch.backward(grad_kl, student, teacher, *rows, temperature, need_student, need_teacher)


def _fake_forward(student: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    kl, lse_student, lse_teacher = (student.new_empty(student.shape[:1], dtype=torch.float32) for _ in range(3))
    return kl, lse_student, lse_teacher


def _fake_backward(grad_kl: Tensor, student: Tensor, teacher: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_student, need_teacher = rest[-3:-1]
    return student.new_empty(student.shape if need_student else 0), teacher.new_empty(
        teacher.shape if need_teacher else 0
    )


_ROWS = "(Tensor kl, Tensor lse_student, Tensor lse_teacher)"
_forward = Operator(
    f"kd_kl_forward(Tensor student, Tensor teacher, float temperature, str backend) -> {_ROWS}",
    _launch_forward,
    _fake_forward,
)
_priority_forward = Operator(
    "kd_kl_priority_forward(Tensor student, Tensor teacher, float temperature, Tensor indices, "
    "Tensor is_weights, Tensor(a!) leaves, Tensor(b!) sums, Tensor(c!) counts, Tensor(d!) arrivals, int capacity, "
    f"float alpha, float eps, str backend) -> {_ROWS}",
    _launch_priority_forward,
    _fake_forward,
)
_backward = Operator(
    "kd_kl_backward(Tensor grad_kl, Tensor student, Tensor teacher, Tensor lse_student, Tensor lse_teacher, Tensor kl, "
    "float temperature, bool need_student, bool need_teacher, str backend) "
    "-> (Tensor grad_student, Tensor grad_teacher)",
    _launch_backward,
    _fake_backward,
)


def _backend(student_logits: Tensor, teacher_logits: Tensor) -> str:
    dtype = torch.float64 if teacher_logits.dtype == torch.float64 else student_logits.dtype
    return pick("kd_kl", student_logits.device.type, dtype)


def _check_logits(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    check_float("student_logits", student_logits)
    check_float("teacher_logits", teacher_logits)
    if student_logits.dim() != 2:
        raise ValueError(f"student_logits: shape {tuple(student_logits.shape)}, expected (B, K)")
    if student_logits.numel() == 0:
        raise ValueError(f"student_logits: empty batch, shape {tuple(student_logits.shape)}")
    if teacher_logits.shape != student_logits.shape:
        shapes = f"{tuple(teacher_logits.shape)}, expected student_logits' {tuple(student_logits.shape)}"
        raise ValueError(f"teacher_logits: shape {shapes}")
    check_same_device("teacher_logits", teacher_logits, "student_logits", student_logits)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: {temperature}, expected a positive, finite number")


def _reduce(kl: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return kl
    return kl.sum() if reduction == "sum" else kl.mean()
