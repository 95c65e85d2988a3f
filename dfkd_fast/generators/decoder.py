"""Convolutional decoders: a vector in, an image out, in [0, 1] or standardised."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.generators.layers import UpsampleConv2d, at_least_float32, draw_small, in_format_of, undoubled


class Decoder(nn.Module):
    """Linear stem, then blocks of [nearest upsampling x2] - 3x3 convolution - BN - LeakyReLU(0.2), then 3x3 to RGB,
    sigmoid.

    `blocks` lists (upsample, channels). Vectors (B, in_features) -> images (B, C, H, W) in [0, 1], at least float32.
    """

    def __init__(
        self,
        in_features: int,
        image_size: Size,
        *,
        stem_channels: int,
        stem_norm: bool,
        blocks: Sequence[tuple[bool, int]],
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.stem_channels, self.start_size = stem_channels, _start_size(image_size, blocks)
        self.stem = nn.Linear(in_features, stem_channels * self.start_size.area)
        self.layers = _conv_stack(stem_channels, blocks, norm=stem_norm, in_chans=in_chans)

    def reset_parameters(self) -> None:
        """Re-initialise every layer in place (torch's defaults): no tensor moves, so captured steps stay valid."""
        self.stem.reset_parameters()
        _reset(self.layers)

    def reset_first_layers(self) -> None:
        """`draw_small` for the stem and its BN: Fast's release does so once, half-way, for the sake of diversity. The
        BN's weights are around 0 there, not 1. A deep decoder has no BN behind its stem, and draws that alone.
        """
        draw_small(self.stem, *(layer for name, layer in self.layers.named_children() if name == "norm0"))

    @property
    def block_starts(self) -> list[int]:
        """Where in `layers` each block starts, and behind the last the convolution to RGB."""
        names = [name for name, _ in self.layers.named_children()]
        return [place for place, name in enumerate(names) if name.startswith("conv") or name == "to_rgb"]

    def forward(self, vectors: Tensor) -> Tensor:
        return decode(self.layers, self.start(vectors))

    def logits(self, vectors: Tensor) -> Tensor:
        """What the sigmoid is taken of: vectors (B, in_features) -> (B, C, H, W)."""
        return _convolve(self.layers, self.start(vectors))

    def start(self, vectors: Tensor) -> Tensor:
        """The maps (B, stem_channels, h, w) that `layers` begin with."""
        return self.stem(vectors).view(-1, self.stem_channels, *self.start_size)


class SpatialDecoder(nn.Module):
    """The same without a stem: a map of latents is where the convolutions start.

    Latents (B, latent_channels, h, w) -> images (B, C, H, W) in [0, 1], (h, w) = `start_size`.
    """

    def __init__(
        self, latent_channels: int, image_size: Size, *, blocks: Sequence[tuple[bool, int]], in_chans: int = 3
    ) -> None:
        super().__init__()
        self.start_size = _start_size(image_size, blocks)
        self.layers = _conv_stack(latent_channels, blocks, norm=False, in_chans=in_chans)

    def reset_parameters(self) -> None:
        """Re-initialise every layer in place (torch's defaults)."""
        _reset(self.layers)

    def forward(self, latents: Tensor) -> Tensor:
        return decode(self.layers, latents)


def make_decoder(in_features: int, image_size: Size, *, width: int = 128, in_chans: int = 3) -> Decoder:
    """The decoder of the zju-vipa code family for an image size: shallow up to 64 px, deep where a side is longer.

    Shallow: Fast and NAYER at 32 and 64 px, stem of 128 x H/4 x W/4 with BN, blocks 128 and 64. Deep: NAYER at 224 px,
    stem of 128 x H/16 x W/16 without BN, blocks 128, 128, 64, 64, 64 of which the first does not upsample. `width`
    stands for their 128, its half for their 64.
    """
    half = width // 2
    if ImageSize.of(image_size).long <= 64:
        shallow = ((True, width), (True, half))
        return Decoder(in_features, image_size, stem_channels=width, stem_norm=True, blocks=shallow, in_chans=in_chans)
    return Decoder(
        in_features, image_size, stem_channels=width, stem_norm=False, blocks=_deep_blocks(width), in_chans=in_chans
    )


def make_large_decoder(in_features: int, image_size: Size, *, width: int = 256, in_chans: int = 3) -> Decoder:
    """CMI's LargeGenerator, which DAFL, ZSKT and DFQ have there: a stem of 256 x H/4 x W/4 with BN, blocks of 128 and
    64.

    `width` stands for the 256. Above 64 px, where nothing is published, it is `make_decoder`'s deep one of half the
    width.
    """
    if ImageSize.of(image_size).long > 64:
        return make_decoder(in_features, image_size, width=width // 2, in_chans=in_chans)
    blocks = ((True, width // 2), (True, width // 4))
    return Decoder(in_features, image_size, stem_channels=width, stem_norm=True, blocks=blocks, in_chans=in_chans)


def make_spatial_decoder(
    latent_channels: int, image_size: Size, *, width: int = 128, in_chans: int = 3
) -> SpatialDecoder:
    """Fast's decoder for ImageNet: the deep blocks of `make_decoder` on latents of H/16 x W/16 positions."""
    return SpatialDecoder(latent_channels, image_size, blocks=_deep_blocks(width), in_chans=in_chans)


def _deep_blocks(width: int) -> tuple[tuple[bool, int], ...]:
    half = width // 2
    return (False, width), (True, width), (True, half), (True, half), (True, half)


def _start_size(image_size: Size, blocks: Sequence[tuple[bool, int]]) -> ImageSize:
    return undoubled(image_size, sum(upsample for upsample, _ in blocks))


def _conv_stack(channels: int, blocks: Sequence[tuple[bool, int]], *, norm: bool, in_chans: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if norm:
        layers["norm0"] = nn.BatchNorm2d(channels)
    for index, (upsample, width) in enumerate(blocks, start=1):
        conv = UpsampleConv2d(channels, width) if upsample else nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers[f"conv{index}"] = conv
        layers[f"norm{index}"] = nn.BatchNorm2d(width)
        layers[f"act{index}"] = nn.LeakyReLU(0.2, inplace=True)
        channels = width
    layers["to_rgb"] = nn.Conv2d(channels, in_chans, 3, padding=1)
    return nn.Sequential(layers)


def _reset(layers: nn.Sequential) -> None:
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            layer.reset_parameters()


def decode(layers: nn.Sequential, maps: Tensor) -> Tensor:
    """Images in [0, 1] from the maps that `layers`, the last of a decoder's, begin with."""
    return torch.sigmoid(_convolve(layers, maps))


def _convolve(layers: nn.Sequential, maps: Tensor) -> Tensor:
    to_rgb = layers.get_submodule("to_rgb")
    assert isinstance(to_rgb, nn.Conv2d)
    return at_least_float32(layers(in_format_of(to_rgb, maps)))


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
