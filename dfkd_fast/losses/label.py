"""Label terms: what class an image was made for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def label_ce(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the teacher's prediction with the class asked for, mean over the batch, in at least float32.

    Logits (B, K), labels (B,) int64 -> scalar. The one-hot loss of DAFL (Chen et al., ICCV 2019) with given labels.
    `weights` (B,) multiply the images' terms; the mean is still over B.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if weights is None:
        return F.cross_entropy(wide, labels)
    return (weights * F.cross_entropy(wide, labels, reduction="none")).mean()
