"""Losses of CPNet (Chen et al., ICCV 2025): what the generator's stages are to make, and where features should lie.

All are at least float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.generators.layers import at_least_float32
from dfkd_fast.losses.generator import label_ce

_EPSILON = 1e-5
"""in the batch's standard deviations, as in a BatchNorm: a channel may be dead"""


def restored(maps: Tensor, batch: tuple[Tensor, Tensor], running: tuple[Tensor, Tensor]) -> Tensor:
    """A BatchNorm's input (B, C, h, w) with the statistics that it should have: F_k, without gradient.

    Standardised by the mean and variance (C,) of `batch`, scaled to those that are `running`.
    """
    (mean, var), (wanted_mean, wanted_var) = batch, running
    scale = (wanted_var / (var + _EPSILON)).sqrt()
    shift = wanted_mean - mean * scale
    return at_least_float32(maps.detach()) * scale[:, None, None] + shift[:, None, None]


def inversion(made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of each node's maps, summed over nodes. Maps (B, C, h, w) in pairs -> scalar."""
    pairs = zip(made, wanted, strict=True)
    return torch.stack([F.mse_loss(at_least_float32(own), target) for own, target in pairs]).sum()


def mixture_ce(logits: Tensor, labels: Tensor, others: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy of images of which a share (B,) shows another class: (1 - share) CE(labels) + share CE(others),
    mean over the batch. Logits (B, K), labels and others (B,) int64 -> scalar. CutMix, Yun et al., ICCV 2019.
    """
    return label_ce(logits, labels, weights=1 - shares) + label_ce(logits, others, weights=shares)


def bounded_inverse(weight: Tensor, least: float) -> Tensor:
    """The transposed pseudo-inverse of a classifier's weight (K, D), its singular values at least `least`: logits (B,
    K) @ this (K, D) are the shortest features of these logits. In float64.
    """
    left, values, right = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    return (left / values.clamp(min=least)) @ right


class FeatureAlignment(nn.Module):
    """L_align: mean |cos(f - (delta y - bias) W+, 1 W+)| for features f of images that were made for classes y.

    delta = ln((1 - s)(K - 1) / s) is how far the label's logit lies above the others where the prediction is the
    smoothed label: 1 - s for the class, s / (K - 1) for any other. `(delta y - bias) W+` are features with these
    logits, `1 W+` is the direction that raises all logits alike, so that the loss is 0 where what is left of the
    features does not.
    """

    anchors: Tensor
    """(K, D), of each class the features with the smoothed label's logits"""
    direction: Tensor
    """(D,)"""

    def __init__(self, classifier: nn.Linear, *, smoothing: float, least: float) -> None:
        super().__init__()
        classes = classifier.out_features
        inverse = bounded_inverse(classifier.weight, least)
        delta = math.log((1 - smoothing) * (classes - 1) / smoothing)
        logits = delta * torch.eye(classes, dtype=inverse.dtype, device=inverse.device)
        if classifier.bias is not None:
            logits = logits - classifier.bias.detach().double()
        self.register_buffer("anchors", logits @ inverse, persistent=False)
        self.register_buffer("direction", inverse.sum(dim=0), persistent=False)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Pooled features (B, D), labels (B,) int64 -> scalar."""
        wide = at_least_float32(features)
        rest, direction = wide - self.anchors.to(wide.dtype)[labels], self.direction.to(wide.dtype)
        return F.cosine_similarity(rest, direction[None]).abs().mean()
