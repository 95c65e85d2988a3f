"""Image priors: what noise has and photographs have not. DeepInversion (Yin et al., CVPR 2020, arXiv:1912.08795),
section 3.2: R_prior.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tv_l1(images: Tensor) -> Tensor:
    """Total variation: the mean absolute difference of neighbours, summed over four directions.

    Images (B, C, H, W) -> scalar. Neighbours stand beside, below and on both diagonals.
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
