"""MUSE's in-out game: the student draws images' embeddings to that of their class, the generator away from it."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 1024
"""classes whose distances to all others are held at once"""


def bounding(embedded: Tensor, centres: Tensor, radius: float, *, per_sample: bool = False) -> Tensor:
    """max(0, MSE - radius): nothing inside the radius, then growing. Embeddings and centres (B, D) -> scalar.

    MUSE (Tran et al., 2024), Eqs. 9 and 10 (L_ed): what the student minimises. The MSE is the mean over batch and
    dimensions, as in LANDER (Tran et al., CVPR 2024), where the bounding loss comes from; with `per_sample` each image
    has its own radius.
    """
    return torch.relu(_mse(embedded, centres, per_sample) - radius).mean()


def repelling(embedded: Tensor, centres: Tensor, radius: float, *, per_sample: bool = False) -> Tensor:
    """max(0, radius - MSE): nothing outside the radius. Embeddings and centres (B, D) -> scalar.

    MUSE, Eq. 12 (L_aed): what the generator minimises.
    """
    return torch.relu(radius - _mse(embedded, centres, per_sample)).mean()


def separation(centres: Tensor) -> Tensor:
    """The smallest MSE between two classes' embeddings (K, D) -> scalar; MUSE's unit of radius (CLIP: about 0.03).

    Takes K^2 D / 2 differences, and memory for 1024 K distances.
    """
    nearest = centres.new_full((), torch.inf)
    for start in range(0, len(centres), _ROWS):
        rows, others = centres[start : start + _ROWS], centres[start:]  # each pair of blocks once
        # by differences: the faster form by products would not give 0 for two equal embeddings
        distances = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = torch.minimum(nearest, distances.fill_diagonal_(torch.inf).min())
    return nearest.square() / centres.shape[1]


def _mse(embedded: Tensor, centres: Tensor, per_sample: bool) -> Tensor:
    wide = torch.promote_types(embedded.dtype, torch.float32)
    squares = (embedded.to(wide) - centres.to(wide)).square()
    return squares.mean(1) if per_sample else squares.mean()
