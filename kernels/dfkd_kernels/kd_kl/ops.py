"""`kd_kl` and `kd_kl_priority`: the distillation loss per row, with gradients to both logits."""

from typing import Literal

from torch import Tensor

from ..priority.sampler import PrioritySampler
from . import reference

Reduction = Literal["none", "mean", "sum", "batchmean"]


def kd_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, reduction: Reduction = "none"
) -> Tensor:
    """T^2 KL(teacher || student) at temperature T (Hinton et al., 2015), from both logit rows in one read.

    Logits are (B, K), floating point, finite; their dtypes may differ. Gradients flow to both. Returns (B,) for "none",
    else a scalar: the "sum" of the rows or their "mean", which `F.kl_div` calls "batchmean" (both names work here), in
    float32, or float64 if either input is float64. Raises ValueError naming the argument that is wrong.
    """
    _check_logits(student_logits, teacher_logits, temperature)
    kl = reference.kd_kl(student_logits, teacher_logits, temperature)
    return _reduce(kl, reduction)


def kd_kl_priority(
    student_logits: Tensor,
    teacher_logits: Tensor,
    indices: Tensor,
    is_weights: Tensor,
    sampler: PrioritySampler,
    temperature: float = 1.0,
) -> Tensor:
    """`kd_kl` of each row (B,), differentiable; the new priorities go back to the sampler in the same pass.

    `indices` (B,) int64 and `is_weights` (B,) are one draw of `sampler.sample(B)`. delta = is_weights * KL, without
    gradient, and the slot's leaf becomes (|delta| + eps)^alpha; an index drawn twice gets the larger leaf (SSD-KD,
    Eq. 4-6, Alg. 1 lines 19-21).
    """
    _check_logits(student_logits, teacher_logits, temperature)
    rows = (student_logits.shape[0],)
    if indices.shape != rows or is_weights.shape != rows:
        raise ValueError(
            f"indices {tuple(indices.shape)} and is_weights {tuple(is_weights.shape)}: "
            f"one entry for each row of student_logits, {rows}"
        )
    kl = reference.kd_kl(student_logits, teacher_logits, temperature)
    sampler.update(indices, is_weights * kl.detach())
    return kl


def _check_logits(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if not logits.is_floating_point():
            raise ValueError(f"{name}: floating point logits needed, not {logits.dtype}")
        if logits.ndim != 2 or logits.numel() == 0:
            raise ValueError(f"{name}: a non-empty (B, K) tensor needed, not {tuple(logits.shape)}")
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"teacher_logits: shape {tuple(teacher_logits.shape)} is not that of student_logits, "
            f"{tuple(student_logits.shape)}"
        )
    if student_logits.device != teacher_logits.device:
        raise ValueError(
            f"teacher_logits: on {teacher_logits.device}, but student_logits is on {student_logits.device}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature: a positive number needed, not {temperature}")


def _reduce(kl: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return kl
    if reduction == "sum":
        return kl.sum()
    if reduction in ("mean", "batchmean"):
        return kl.mean()
    raise ValueError(f"reduction: {reduction!r}; choose none, mean, sum or batchmean")
