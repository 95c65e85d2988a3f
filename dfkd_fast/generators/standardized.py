"""Images of a given mean and spread, without bounds: how the generators of ZSKT's and DAFL's authors end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfkd_fast.generators.decoder import Decoder


class StandardizedDecoder(nn.Module):
    """A decoder that ends in a BatchNorm without weights in place of a sigmoid.

    Vectors (B, in_features) -> images (B, C, H, W) of which each channel has the mean and the standard deviation of the
    data (C values each, in [0, 1]) over a batch: once they are normalised for the teacher, 0 and 1. So they can be
    neither blank nor all alike, and single pixels may lie outside [0, 1]. `tanh`: bounded before they are standardised
    (DAFL's authors; ZSKT's have none).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, decoder: Decoder, mean: Sequence[float], std: Sequence[float], *, tanh: bool = False) -> None:
        super().__init__()
        self.decoder, self.tanh = decoder, tanh
        self.norm = nn.BatchNorm2d(len(mean), affine=False)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        values = self.decoder.logits(vectors)
        return self.norm(values.tanh() if self.tanh else values) * self.std + self.mean
