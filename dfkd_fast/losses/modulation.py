"""How much an image's label term counts."""

from __future__ import annotations

import torch
from torch import Tensor


def modulation(logits: Tensor, class_shares: Tensor, focus: float) -> Tensor:
    """(1 - share of the buffer that has the predicted class) x (1 - confidence)^focus, for each image.

    Logits (B, K) of the teacher, `class_shares` (K,) in [0, 1] -> (B,) in [0, 1], without gradient, in at least
    float32. The modulating function of SSD-KD (Liu et al., CVPR 2024, arXiv:2406.07876, Eq. 3): diversity times
    difficulty.
    """
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    confidence, predicted = wide.softmax(dim=1).max(dim=1)
    return (1 - class_shares[predicted]) * (1 - confidence) ** focus
