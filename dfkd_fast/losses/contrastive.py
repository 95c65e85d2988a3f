"""Contrastive terms: images that can be told apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def instance_discrimination(
    local_features: Tensor, global_features: Tensor, *, num_new: int, is_filled: Tensor, temperature: float
) -> Tensor:
    """How hard it is to find an image by a part of it: cross-entropy of each local view with all global views.

    CMI (Fang et al., IJCAI 2021, arXiv:2105.08584: L_cr), as released: the mean over the `num_new` new images plus the
    mean over the stored ones, so that many stored images do not dilute the new ones' gradient.

    local_features, global_features (N, D), of length 1, new images first; is_filled (N - num_new,) bool: which stored
    rows count -> scalar, float32 at least. Global features get no gradient. Without a filled row, the new images alone.
    """
    dtype = torch.promote_types(local_features.dtype, torch.float32)
    # N x N numbers, of which each pass over them counts: in place, and one kernel each way
    logits = (local_features @ global_features.detach().mT).to(dtype).div_(temperature)
    counts = torch.cat([is_filled.new_ones(num_new), is_filled])
    logits.add_(torch.where(counts, 0.0, -torch.inf).to(dtype))
    losses = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    stored = torch.where(is_filled, losses[num_new:], 0).sum() / is_filled.sum().clamp(min=1)
    return losses[:num_new].mean() + stored
