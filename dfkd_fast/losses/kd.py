"""Distillation: the student's logits towards the teacher's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

import dfkd_kernels


def kd_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, *, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    """KL(teacher || student) at a temperature, times T^2. Logits (B, K) -> scalar, the mean over the batch, or (B,).

    Hinton et al., 2015 (arXiv:1503.02531). The sum runs over classes, so the value is torch's `batchmean` reduction.
    """
    return dfkd_kernels.kd_kl(student_logits, teacher_logits, temperature=temperature, reduction=reduction)
