"""Class activation maps: images that show their class all over, or in the middle."""

from __future__ import annotations

import torch
from torch import Tensor

import dfkd_kernels


def cam_margin(
    features: Tensor | None, class_weights: Tensor, labels: Tensor, peak: float, sigma: float | None = None
) -> Tensor:
    """max(0, target - M), mean over batch and pixels, M the activation map of each image's label. -> scalar.

    MUSE (Tran et al., 2024), Eqs. 5 and 6: M[b] = sum_k class_weights[labels[b], k] features[b, k], the map of Zhou et
    al. (CVPR 2016) before bias, normalisation and resizing; its mean plus the bias is the label's logit. The target is
    `peak` everywhere, Full(peak), or with `sigma` a Gaussian, G(peak, sigma).

    Features (B, D, h, w) after the last ReLU, class weights (K, D), labels (B,) int64.
    """
    assert features is not None, "a network with class weights has features"
    target: float | Tensor = peak
    if sigma is not None:
        target = gaussian_target(*features.shape[2:], peak=peak, sigma=sigma, device=features.device)
    return dfkd_kernels.cam_margin_loss(features, class_weights, labels, target)


def gaussian_target(height: int, width: int, *, peak: float, sigma: float, device: torch.device) -> Tensor:
    """MUSE's target G(peak, sigma): highest in the middle of the map, falling off by `sigma` cells. -> (h, w)."""

    def squares(size: int) -> Tensor:
        return (torch.arange(size, device=device) - (size - 1) / 2).square()

    return peak * torch.exp(-(squares(height)[:, None] + squares(width)) / (2 * sigma**2))
