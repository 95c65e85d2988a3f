"""Convolutional decoders: a vector in, an image in [0, 1] out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Decoder(nn.Module):
    """Linear stem, then blocks of [nearest upsampling x2] - 3x3 convolution - BN - LeakyReLU(0.2), then 3x3 to RGB,
    sigmoid.

    `blocks` lists (upsample, channels). Vectors (B, in_features) -> images (B, 3, H, W) in [0, 1], at least float32:
    the sigmoid of a bfloat16 number has no more than 8 bits near 1, fewer than a pixel of the pool.
    """

    def __init__(
        self,
        in_features: int,
        image_size: int,
        *,
        stem_channels: int,
        stem_norm: bool,
        blocks: Sequence[tuple[bool, int]],
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        scale = 2 ** sum(upsample for upsample, _ in blocks)
        if image_size % scale:
            raise ValueError(f"image_size {image_size}: must be a multiple of {scale} for this generator")
        self.stem_channels, self.stem_size = stem_channels, image_size // scale
        self.stem = nn.Linear(in_features, stem_channels * self.stem_size**2)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if stem_norm:
            layers["norm0"] = nn.BatchNorm2d(stem_channels)
        channels = stem_channels
        for index, (upsample, width) in enumerate(blocks, start=1):
            if upsample:
                layers[f"up{index}"] = nn.Upsample(scale_factor=2, mode="nearest")
            layers[f"conv{index}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers[f"norm{index}"] = nn.BatchNorm2d(width)
            layers[f"act{index}"] = nn.LeakyReLU(0.2, inplace=True)
            channels = width
        layers["to_rgb"] = nn.Conv2d(channels, in_chans, 3, padding=1)
        self.layers = nn.Sequential(layers)

    def reset_parameters(self) -> None:
        """Re-initialise every layer in place (torch's defaults): no tensor moves, so captured steps stay valid."""
        self.stem.reset_parameters()
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
                layer.reset_parameters()

    def forward(self, vectors: Tensor) -> Tensor:
        maps = self.stem(vectors).view(-1, self.stem_channels, self.stem_size, self.stem_size)
        if self.layers.get_parameter("to_rgb.weight").is_contiguous(memory_format=torch.channels_last):
            maps = maps.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.layers(maps)
        return torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def make_decoder(in_features: int, image_size: int, *, width: int = 128, in_chans: int = 3) -> Decoder:
    """The decoder of the zju-vipa code family for an image size: shallow up to 64 px, deep above.

    Shallow: Fast and NAYER at 32 and 64 px, stem of 128 x (H/4)^2 with BN, blocks 128 and 64. Deep: NAYER at 224 px, stem
    of 128 x (H/16)^2 without BN, blocks 128, 128, 64, 64, 64 of which the first does not upsample. `width` stands for
    their 128, its half for their 64.
    """
    half = width // 2
    if image_size <= 64:
        shallow = ((True, width), (True, half))
        return Decoder(in_features, image_size, stem_channels=width, stem_norm=True, blocks=shallow, in_chans=in_chans)
    deep = ((False, width), (True, width), (True, half), (True, half), (True, half))
    return Decoder(in_features, image_size, stem_channels=width, stem_norm=False, blocks=deep, in_chans=in_chans)
