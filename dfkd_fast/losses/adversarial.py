"""Adversarial terms: images on which the student does not yet follow the teacher."""

from __future__ import annotations

from torch import Tensor

import dfkd_kernels


def disagreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Minus KL(teacher || student) at T = 1 where both predict the same class, mean over the whole batch.

    Logits (B, K) -> scalar. The decision-adversarial term of CMI (Fang et al., IJCAI 2021, Eq. 6): only samples on
    which the student still agrees are pushed over the boundary. Gradients flow to both networks' logits.
    """
    divergence = dfkd_kernels.kd_kl(student_logits, teacher_logits, temperature=1.0, reduction="none")
    agree = student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)
    return -(divergence * agree).mean()
