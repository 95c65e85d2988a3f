"""Distillation: the student's logits towards the teacher's, and its attention where the teacher's is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

import dfkd_kernels


def kd_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, *, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    """KL(teacher || student) at a temperature, times T^2. Logits (B, K) -> scalar, the mean over the batch, or (B,).

    Hinton et al., 2015 (arXiv:1503.02531). The sum runs over classes, so the value is torch's `batchmean` reduction.
    """
    return dfkd_kernels.kd_kl(student_logits, teacher_logits, temperature=temperature, reduction=reduction)


def _attention_map(maps: Tensor) -> Tensor:
    """Mean square over channels, of length 1 over pixels. Maps (B, C, h, w) -> (B, h w), at least float32."""
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return F.normalize(wide.square().mean(1).flatten(1), dim=1)


def attention_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the attention maps, summed over stages. Maps (B, C, h, w) in pairs of equal height and
    width -> scalar.

    Zagoruyko and Komodakis, ICLR 2017 (arXiv:1612.03928); the form of ZSKT's student loss (Micaelli and Storkey,
    NeurIPS 2019, arXiv:1905.09768).
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack(
        [(_attention_map(mine) - _attention_map(theirs)).square().mean() for mine, theirs in pairs]
    ).sum()
