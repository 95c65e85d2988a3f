"""Distillation: the student's logits towards the teacher's."""

from __future__ import annotations

from torch import Tensor

import dfkd_kernels


def kd_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature, times T^2, mean over the batch. Logits (B, K) -> scalar.

    Hinton et al., 2015 (arXiv:1503.02531). The sum runs over classes, so the value is torch's `batchmean` reduction.
    """
    return dfkd_kernels.kd_kl(student_logits, teacher_logits, temperature=temperature, reduction="mean")
