"""Where a network sees a class: activation maps of student and teacher, and how far they are apart.

The maps of SpaceshipNet (Yu et al., CVPR 2023) and MSARC (Liang et al., Scientific Reports 2024). Networks hand out
their stage maps as values, so there are no hooks, and gradients are taken with respect to these maps alone: none of a
weight is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

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
