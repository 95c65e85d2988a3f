"""The frequency of each class among generated images, as a running average on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ClassFrequency(nn.Module):
    """HiDFD's category frequencies (Tang et al., AAAI 2025, arXiv:2412.13525, Eqs. 10 and 11).

    n <- (1 - momentum) n + momentum x (images of the batch that the teacher puts into each class), from equal counts
    on. `least` images are counted for a class that has not come up for long: else its weight would have no bound.
    `mean_one`: weights whose mean is 1, as the authors' regulariser scales them; off: Eqs. 11 and 12, whose least
    possible mean is the number of classes.
    """

    counts: Tensor

    def __init__(
        self, num_classes: int, batch_size: int, *, momentum: float, least: float = 0.1, mean_one: bool = False
    ) -> None:
        super().__init__()
        self.momentum, self.least, self.mean_one = momentum, least, mean_one
        self.register_buffer("counts", torch.full((num_classes,), batch_size / num_classes))

    def weights(self) -> Tensor:
        """1 / (n_c / sum of n) of each class (K,): what Eq. 12 divides by, or that over its mean."""
        counts = self.counts.clamp_min(self.least)
        weights = counts.sum() / counts
        return weights / weights.mean() if self.mean_one else weights

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Count a batch by the teacher's predictions (B, K)."""
        seen = torch.zeros_like(self.counts)
        seen.index_add_(0, logits.argmax(dim=1), torch.ones_like(logits[:, 0], dtype=seen.dtype))
        self.counts.lerp_(seen, self.momentum)
