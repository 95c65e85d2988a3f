"""Losses on generated images beside the teacher's BatchNorm statistics: their class, all classes equally often, strong
excitation of features, and an image prior (photographs rather than noise).
"""

from __future__ import annotations

import math

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


def class_balance(logits: Tensor) -> Tensor:
    """sum_c p_c log p_c, p the mean of softmax(logits) over the batch: minus its entropy, -log K where all classes are
    equally frequent.

    Logits (B, K) -> scalar in [-log K, 0], at least float32. The information entropy loss of DAFL (Chen et al., ICCV
    2019, arXiv:1904.01186); DFQ has it, too. By logarithms throughout, so that a class that no image has gives 0 and no
    NaN.
    """
    log_shares = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)
    log_mean = torch.logsumexp(log_shares, dim=0) - math.log(len(logits))
    return (log_mean.exp() * log_mean).sum()


def activation(features: Tensor) -> Tensor:
    """Minus the mean absolute feature. Features (B, D), what the classifier reads -> scalar, at least float32.

    DAFL's activation loss: real images excite a network more than noise does.
    """
    return -features.to(torch.promote_types(features.dtype, torch.float32)).abs().mean()


def modulation(logits: Tensor, class_shares: Tensor, focus: float) -> Tensor:
    """(1 - share of the buffer that has the predicted class) x (1 - confidence)^focus, for each image.

    Logits (B, K) of the teacher, `class_shares` (K,) in [0, 1] -> (B,) in [0, 1], without gradient, in at least
    float32. The modulating function of SSD-KD (Liu et al., CVPR 2024, arXiv:2406.07876, Eq. 3): diversity times
    difficulty.
    """
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    confidence, predicted = wide.softmax(dim=1).max(dim=1)
    return (1 - class_shares[predicted]) * (1 - confidence) ** focus


def tv_l1(images: Tensor) -> Tensor:
    """Total variation: the mean absolute difference of neighbours, summed over four directions.

    Images (B, C, H, W) -> scalar. Neighbours stand beside, below and on both diagonals. With `tv_l2` and `l2` the
    R_prior of DeepInversion (Yin et al., CVPR 2020, arXiv:1912.08795, section 3.2).
    """
    return torch.stack([difference.abs().mean() for difference in _differences(images)]).sum()


def tv_l2(images: Tensor) -> Tensor:
    """Total variation: the L2 norm of the differences of neighbours over the whole batch, summed over four directions.

    Images (B, C, H, W) -> scalar. Neighbours as for `tv_l1`.
    """
    return torch.stack([torch.linalg.vector_norm(difference) for difference in _differences(images)]).sum()


def l2(images: Tensor) -> Tensor:
    """L2 norm of each image, mean over the batch. Images (B, C, H, W) -> scalar."""
    return torch.linalg.vector_norm(images.flatten(1), dim=1).mean()


def _differences(images: Tensor) -> tuple[Tensor, ...]:
    upper, lower = images[:, :, :-1], images[:, :, 1:]
    return (
        images[..., :-1] - images[..., 1:],
        upper - lower,
        lower[..., :-1] - upper[..., 1:],
        upper[..., :-1] - lower[..., 1:],
    )
