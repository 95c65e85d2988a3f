"""Class activation maps: where a network sees a class, and images that show theirs all over or in the middle.

The maps of student and teacher side by side are SpaceshipNet's (Yu et al., CVPR 2023) and MSARC's (Liang et al.,
Scientific Reports 2024), the margin is MUSE's (Tran et al., 2024). Networks hand out their stage maps as values, so
there are no hooks, and gradients are taken with respect to these maps alone: none of a weight is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

import dfkd_kernels

Weighting = Literal["gradient", "gradient_times_map"]

# The score is multiplied by it and the gradient divided, which is exact: one pixel's share would be lost in float16.
_SCALE = 1024.0


def class_maps(features: Tensor | None, class_weights: Tensor) -> Tensor:
    """Activation maps of all classes: M[b, k] = sum_d class_weights[k, d] features[b, d], without the bias.

    Features (B, D, h, w), class weights (K, D) -> (B, K, h, w), at least float32. Zhou et al., CVPR 2016; MSARC Eq. 10.
    Gradients flow to both; give the weights detached to leave them alone.
    """
    assert features is not None, "a network with class weights has features"
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("kd,bdhw->bkhw", class_weights.to(dtype), features.to(dtype))


def grad_cams(
    logits: Tensor,
    maps: Sequence[Tensor],
    classes: Tensor,
    *,
    weighting: Weighting = "gradient",
    relu: bool = False,
) -> list[Tensor]:
    """Grad-CAM of each map: the sum of its channels, weighted by how much each makes for the class's logit.

    Logits (B, K) with a graph from the maps (B, C, h, w), classes (B,) int64 -> (B, h, w) for each map, at least
    float32, differentiable through the map; the weights are constants. The graph is kept for the backward pass.

    `weighting` "gradient": the gradient's mean over pixels (Selvaraju et al., ICCV 2017, and SpaceshipNet's release);
    "gradient_times_map": the mean of gradient x map, MSARC Eqs. 12 and 13. `relu`: MSARC Eq. 14.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    score = logits.gather(1, classes[:, None]).to(dtype).sum() * _SCALE
    cams = []
    for gradient, values in zip(torch.autograd.grad(score, list(maps), retain_graph=True), maps, strict=True):
        wide = values.to(dtype)
        share = gradient.to(dtype) / _SCALE
        if weighting == "gradient_times_map":
            share = share * wide.detach()
        cam = (share.mean((2, 3), keepdim=True) * wide).sum(1)
        cams.append(F.relu(cam) if relu else cam)
    return cams


def cam_distance(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """Mean squared difference over batch, classes and pixels. Maps (B, h, w) or (B, K, h, w) -> scalar; MSARC Eq. 15.

    Where the sizes differ, the larger map is averaged down to the smaller. The teacher's gets no gradient.
    """
    height, width = (min(sizes) for sizes in zip(student_maps.shape[-2:], teacher_maps.shape[-2:], strict=True))
    pooled = [F.adaptive_avg_pool2d(maps, (height, width)) for maps in (student_maps, teacher_maps.detach())]
    return (pooled[0] - pooled[1]).square().mean()


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
