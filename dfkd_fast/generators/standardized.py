"""Images of a given mean and spread, without bounds: how the generators of ZSKT's and DAFL's authors end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dfkd_fast.generators.decoder import Decoder

Output = Literal["sigmoid", "batchnorm", "tanh-batchnorm"]
"""what images end in: pixels in [0, 1], or a BatchNorm without weights, plain or behind a tanh"""


class StandardizedDecoder(nn.Module):
    """A decoder that ends in a BatchNorm without weights in place of a sigmoid.

    Vectors (B, in_features) -> images (B, C, H, W). In training mode each channel of a batch has the mean and the
    standard deviation of the data (C values each, in [0, 1]): once the images are normalised for the teacher, 0 and 1.
    So a generator cannot leave for black or white images, and single pixels may lie outside [0, 1]. In evaluation mode
    the running statistics are taken. `tanh`: bounded before they are standardised.
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


def with_output(
    decoder: Decoder, output: Output, *, mean: Sequence[float], std: Sequence[float]
) -> Decoder | StandardizedDecoder:
    """The decoder, with the end that is asked for; mean and standard deviation of the data, one for each channel."""
    if output == "sigmoid":
        return decoder
    return StandardizedDecoder(decoder, mean, std, tanh=output == "tanh-batchnorm")
