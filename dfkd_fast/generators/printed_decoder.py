"""NAYER's decoder as tables 8 and 9 of its supplement print it, which its released code does not build."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.generators.layers import SpectralConv2d, at_least_float32, in_format_of, undoubled
from dfkd_fast.models.info import ModelInfo


class PrintedDecoder(nn.Module):
    """Linear stem with BatchNorm1d, blocks of 3x3 convolution - BN - LeakyReLU(0.2) - nearest upsampling x2, then 3x3
    to RGB, sigmoid, BN; every convolution has spectral norm 1.

    Vectors (B, in_features) -> images (B, C, H, W), at least float32. Tran et al., CVPR 2024, table 8 up to 64 pixels
    (maps of H/4, blocks of `width` and half of it) and table 9 above (H/16; twice `width`, twice half). The last BN
    leaves [0, 1]; as in the generators of DAFL and ZSKT, which end in one, what it gives counts as normalised: `mean`
    and `std` of the data (C values each, for pixels in [0, 1]) make pixels of it. Not printed, and so as released:
    slope, kind of upsampling, and convolutions without bias in front of a BN.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, info: ModelInfo, in_features: int, *, width: int) -> Self:
        """For the images that a teacher expects."""
        return cls(in_features, info.image_size, width=width, mean=info.mean, std=info.std)

    def __init__(
        self, in_features: int, image_size: Size, *, width: int = 128, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        half = width // 2
        blocks = (width, half) if ImageSize.of(image_size).long <= 64 else (width, width, half, half)
        self.start_size = undoubled(image_size, len(blocks))
        self.stem = nn.Linear(in_features, width * self.start_size.area)
        self.stem_norm = nn.BatchNorm1d(width * self.start_size.area)
        widths = (width, *blocks)
        self.convs = nn.ModuleList(
            SpectralConv2d(before, after, 3, padding=1, bias=False)
            for before, after in zip(widths, blocks, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for after in blocks)
        self.to_rgb = SpectralConv2d(half, len(mean), 3, padding=1)
        self.image_norm = nn.BatchNorm2d(len(mean))
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Re-initialise every layer in place (torch's defaults), and where the power iterations start."""
        for layer in (self.stem, self.stem_norm, *self.convs, *self.norms, self.to_rgb, self.image_norm):
            layer.reset_parameters()
            if isinstance(layer, SpectralConv2d):
                layer.left.copy_(F.normalize(torch.randn_like(layer.left), dim=0))

    def forward(self, vectors: Tensor) -> Tensor:
        maps = self.stem_norm(self.stem(vectors)).unflatten(1, (-1, *self.start_size))
        maps = in_format_of(self.to_rgb, maps)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps = F.interpolate(F.leaky_relu(norm(conv(maps)), 0.2), scale_factor=2.0, mode="nearest")
        pixels = torch.sigmoid(at_least_float32(self.to_rgb(maps)))
        return self.image_norm(pixels) * self.std + self.mean
