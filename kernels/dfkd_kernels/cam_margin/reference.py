"""The specification of `cam_margin_loss` in plain torch: differentiable, on any device, exact in float64."""

import torch
from torch import Tensor


def cam_margins(features: Tensor, class_weights: Tensor, labels: Tensor, target: float | Tensor) -> Tensor:
    """max(0, target - M) with M[b] = sum_k class_weights[labels[b], k] * features[b, k]. (B, K, h, w) -> (B, h, w)."""
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    weights = class_weights.detach()[labels].to(dtype)
    with torch.autocast(features.device.type, enabled=False):  # it would multiply in half precision
        maps = torch.bmm(weights.unsqueeze(1), features.to(dtype).flatten(2)).view(len(labels), *features.shape[2:])
    return torch.relu(target - maps)
