"""Attention transfer: the student looks where the teacher looks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


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
