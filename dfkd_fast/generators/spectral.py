"""Layers whose weight has spectral norm 1 (Miyato et al., ICLR 2018, arXiv:1802.05957)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpectralLinear(nn.Linear):
    """A linear layer that divides its weight by its largest singular value."""

    left: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("left", F.normalize(torch.randn(out_features), dim=0))

    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(rows, normalized(self.weight, self.left, update=self.training), self.bias)


class SpectralConv2d(nn.Conv2d):
    """The same for a convolution, whose weight counts as a matrix (out_channels, rest)."""

    left: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, **options: Any) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self.register_buffer("left", F.normalize(torch.randn(out_channels), dim=0))

    def forward(self, maps: Tensor) -> Tensor:
        return self._conv_forward(maps, normalized(self.weight, self.left, update=self.training), self.bias)


def normalized(weight: Tensor, left: Tensor, *, update: bool) -> Tensor:
    """`weight` over its largest singular value, as one power iteration from `left` (rows,) estimates it.

    With `update` the iteration's result is written to `left`, in place, so that it gets better from call to call.
    Gradients flow through the value, not through the singular vectors. Products and sums in place of a matrix product:
    autocast would round that to 8 bits.
    """
    matrix = weight.flatten(1)
    with torch.no_grad():
        right = F.normalize((matrix * left[:, None]).sum(dim=0), dim=0)
        own = F.normalize((matrix * right).sum(dim=1), dim=0) if update else left.clone()
        if update:
            left.copy_(own)
    return weight / (own * (matrix * right).sum(dim=1)).sum()
