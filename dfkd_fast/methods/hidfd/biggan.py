"""A BigGAN-like pair for small images: class-conditional residual generator, discriminator with the heads asked for.

Brock, Donahue, Simonyan, ICLR 2019 (arXiv:1809.11096), in the CIFAR shape that HiDFD uses: no attention, class
embeddings of each BatchNorm's own, latents at the stem only.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.errors import UserError
from dfkd_fast.generators.layers import SpectralConv2d, SpectralLinear, at_least_float32, in_format_of

# By number of doublings: channels of each map of the generator, in units of the width; the discriminator's blocks, in
# units, with those that halve the map. Up to three doublings CIFAR's, then BigGAN's for 64, 128 and 256 pixels.
_GENERATOR = {
    **{doublings: (4,) * (doublings + 1) for doublings in (1, 2, 3)},
    4: (16, 16, 8, 4, 2),
    5: (16, 16, 8, 4, 2, 1),
    6: (16, 16, 8, 8, 4, 2, 1),
}
_DISCRIMINATOR = {
    **dict.fromkeys((1, 2, 3), ((4, True), (4, True), (4, False), (4, False))),
    4: ((1, True), (2, True), (4, True), (8, True), (16, False)),
    5: ((1, True), (2, True), (4, True), (8, True), (16, True), (16, False)),
    6: ((1, True), (2, True), (4, True), (8, True), (8, True), (16, True), (16, False)),
}
_HEAD_WIDTH = 1024  # hidden units of the feature head, at every size


class Judgement(NamedTuple):
    """What a discriminator says of images."""

    scores: Tensor
    """(B,), logits of "real" """
    classes: Tensor
    """(B, 2K): logits of "real of class y" at 2y, of "generated of class y" at 2y + 1"""
    features: Tensor | None
    """(B, D), in the shape of the teacher's features; None without that head, two spectrally normalised layers"""


class ClassNorm(nn.Module):
    """BatchNorm whose gain and bias depend on the class."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = nn.Embedding(num_classes, channels)  # beside 1
        self.bias = nn.Embedding(num_classes, channels)

    def forward(self, maps: Tensor, labels: Tensor) -> Tensor:
        gain, bias = 1 + self.gain(labels), self.bias(labels)
        normed: Tensor = self.norm(maps)
        return normed * gain[:, :, None, None] + bias[:, :, None, None]


class UpBlock(nn.Module):
    """Residual block that doubles its map; the 1x1 shortcut comes before the upsampling, which changes nothing else."""

    def __init__(self, in_channels: int, out_channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = ClassNorm(in_channels, num_classes)
        self.conv1 = SpectralConv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = ClassNorm(out_channels, num_classes)
        self.conv2 = SpectralConv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = SpectralConv2d(in_channels, out_channels, 1)

    def forward(self, maps: Tensor, labels: Tensor) -> Tensor:
        inner = F.interpolate(F.relu(self.norm1(maps, labels)), scale_factor=2)
        inner = F.relu(self.norm2(self.conv1(inner), labels))
        return self.conv2(inner) + F.interpolate(self.shortcut(maps), scale_factor=2)


class DownBlock(nn.Module):
    """Residual block that halves its map or keeps it; the first one of a network has no ReLU before it."""

    def __init__(self, in_channels: int, out_channels: int, *, halves: bool, first: bool) -> None:
        super().__init__()
        self.halves, self.first = halves, first
        self.conv1 = SpectralConv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = SpectralConv2d(out_channels, out_channels, 3, padding=1)
        has_shortcut = halves or in_channels != out_channels
        self.shortcut = SpectralConv2d(in_channels, out_channels, 1) if has_shortcut else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.conv2(F.relu(self.conv1(maps if self.first else F.relu(maps))))
        if not self.halves:
            return inner + self.shortcut(maps)
        # a mean of pixels and a 1x1 convolution may change places
        return F.avg_pool2d(inner, 2) + self.shortcut(F.avg_pool2d(maps, 2))


class BigGenerator(nn.Module):
    """Latents (B, latent_dim) and labels (B,) -> images (B, in_chans, H, W) in [0, 1], at least float32."""

    def __init__(
        self, latent_dim: int, num_classes: int, image_size: Size, *, width: int = 64, in_chans: int = 3
    ) -> None:
        super().__init__()
        doublings, self.start_size = _start(image_size)
        channels = [width * units for units in _GENERATOR[doublings]]
        self.stem = SpectralLinear(latent_dim, channels[0] * self.start_size.area)
        self.blocks = nn.ModuleList(UpBlock(before, after, num_classes) for before, after in pairwise(channels))
        self.norm = nn.BatchNorm2d(channels[-1])
        self.to_rgb = SpectralConv2d(channels[-1], in_chans, 3, padding=1)
        _draw_weights(self)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        maps = self.stem(latents).view(len(latents), -1, *self.start_size)
        maps = in_format_of(self.to_rgb, maps)
        for block in self.blocks:
            maps = block(maps, labels)
        return (torch.tanh(at_least_float32(self.to_rgb(F.relu(self.norm(maps))))) + 1) / 2


class BigDiscriminator(nn.Module):
    """Images (B, in_chans, H, W) in [0, 1] -> `Judgement`. `feature_dim`: width of the feature head, 0 for none."""

    def __init__(
        self, num_classes: int, image_size: Size, *, width: int = 64, feature_dim: int = 0, in_chans: int = 3
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = in_chans
        for units, halves in _DISCRIMINATOR[_start(image_size)[0]]:
            blocks.append(DownBlock(channels, width * units, halves=halves, first=not blocks))
            channels = width * units
        self.blocks = nn.Sequential(*blocks)
        self.score = SpectralLinear(channels, 1)
        self.classes = SpectralLinear(channels, 2 * num_classes)
        head = (SpectralLinear(channels, _HEAD_WIDTH), SpectralLinear(_HEAD_WIDTH, feature_dim)) if feature_dim else ()
        self.features = nn.Sequential(*head) if head else None
        _draw_weights(self)

    def forward(self, images: Tensor) -> Judgement:
        pooled = F.relu(self.blocks(2 * images - 1)).sum(dim=(2, 3))
        features = None if self.features is None else self.features(pooled)
        return Judgement(self.score(pooled).squeeze(1), self.classes(pooled), features)


def _start(image_size: Size) -> tuple[int, ImageSize]:
    """How often a map of 4 to 7 pixels, by its shorter side, is doubled into an image, and that map's size."""
    size = ImageSize.of(image_size)
    for doublings in _GENERATOR:
        start = size.divided(2**doublings)
        if start is not None and 4 <= start.short < 8:
            return doublings, start
    sides = "" if size.is_square else " (the shorter side; the other a multiple of that power)"
    raise UserError(
        f"--image-size {size.flag}: choose 4 to 7 pixels times a power of 2, up to 256{sides}, for this generator"
    )


@torch.no_grad()
def _draw_weights(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding):
            layer.weight.normal_(0, 0.02)
