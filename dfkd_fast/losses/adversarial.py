"""Adversarial terms: images on which the student does not yet follow the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

import dfkd_kernels

_PROBABILITY_RANGE = (0.01, 0.99)


def disagreement(student_logits: Tensor, teacher_logits: Tensor, *, masked: bool = True) -> Tensor:
    """Minus KL(teacher || student) at T = 1 where both predict the same class, mean over the whole batch.

    Logits (B, K) -> scalar. The decision-adversarial term of CMI (Fang et al., IJCAI 2021, Eq. 6): only samples on
    which the student still agrees are pushed over the boundary. With `masked` off all samples count, as the equations
    of NAYER (Eq. 5), SSD-KD (Eq. 2) and MSARC (Eq. 16) print it. Gradients flow to both networks' logits.
    """
    divergence = dfkd_kernels.kd_kl(student_logits, teacher_logits, temperature=1.0, reduction="none")
    if not masked:
        return -divergence.mean()
    agree = student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)
    return -(divergence * agree).mean()


def competition(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 3.0, clamp: bool = False
) -> Tensor:
    """1 - JS(teacher, student), mean over the batch: small where the student does not follow the teacher.

    Logits (B, K) -> scalar, float32 at least. Adaptive DeepInversion (Yin et al., CVPR 2020, arXiv:1912.08795, section
    3.3: R_compete), as its authors compute it: JS = (KL(M || P) + KL(M || Q)) / 2 with M = (P + Q) / 2, where the
    definition has KL(P || M) and KL(Q || M), and all probabilities are kept within [0.01, 0.99]. So it may exceed 1;
    `clamp` cuts it there, and the images are pushed no further.
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    p = torch.softmax(student_logits.to(dtype) / temperature, dim=1)
    q = torch.softmax(teacher_logits.to(dtype) / temperature, dim=1)
    p, q, m = (probabilities.clamp(*_PROBABILITY_RANGE) for probabilities in (p, q, (p + q) / 2))
    divergence = (m * (m.log() - (p.log() + q.log()) / 2)).sum(dim=1).mean()
    return 1 - (divergence.clamp(0, 1) if clamp else divergence)
