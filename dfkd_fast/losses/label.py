"""Label terms: what class an image was made for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def label_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the teacher's prediction with the class asked for, mean over the batch, in at least float32.

    Logits (B, K), labels (B,) int64 -> scalar. The one-hot loss of DAFL (Chen et al., ICCV 2019) with given labels.
    """
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)
