"""Building blocks of generators: layers, where they start, formats and dtypes at their ends, initialisations that
PyTorch lacks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.errors import UserError


class UpsampleConv2d(nn.Conv2d):
    """3x3 convolution of a map that is upsampled x2 by nearest neighbours: (B, C, h, w) -> (B, D, 2h, 2w).

    A 3x3 window on the upsampled map sees 2x2 pixels of the small one, which ones depends on the parity of row and
    column: four 2x2 convolutions with sums of the weights, and together they are one transposed convolution, 4x4 with
    stride 2. The weights stay those of the 3x3 convolution (names, shapes, initialisation) and are folded in each
    forward pass, so that gradients reach them. Borders are exact; sums associate in another order.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        return F.conv_transpose2d(maps, fold_upsampling(self.weight), stride=2, padding=1)


def fold_upsampling(weight: Tensor) -> Tensor:
    """Weights (D, C, 3, 3) of a convolution on upsampled maps -> (C, D, 4, 4) of the transposed one on small maps.

    In one dimension, with y the 3-tap convolution of u, u[k] = x[k // 2] and 0 outside:
    y[2i] = w0 x[i-1] + (w1 + w2) x[i] and y[2i+1] = (w0 + w1) x[i] + w2 x[i+1].
    """
    folded = weight.transpose(0, 1)
    for dim in (2, 3):
        first, middle, last = folded.unbind(dim)
        folded = torch.stack((last, middle + last, first + middle, first), dim)
    return folded


class SpectralLinear(nn.Linear):
    """A linear layer that divides its weight by its largest singular value."""

    left: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("left", F.normalize(torch.randn(out_features), dim=0))

    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(rows, spectrally_normalized(self.weight, self.left, update=self.training), self.bias)


class SpectralConv2d(nn.Conv2d):
    """The same for a convolution, whose weight counts as a matrix (out_channels, rest)."""

    left: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, **options: Any) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self.register_buffer("left", F.normalize(torch.randn(out_channels), dim=0))

    def forward(self, maps: Tensor) -> Tensor:
        return self._conv_forward(maps, spectrally_normalized(self.weight, self.left, update=self.training), self.bias)


def spectrally_normalized(weight: Tensor, left: Tensor, *, update: bool) -> Tensor:
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


def undoubled(image_size: Size, doublings: int) -> ImageSize:
    """Of the maps that so many doublings bring to `image_size`. Raises UserError for a side that none come to."""
    scale, size = 2**doublings, ImageSize.of(image_size)
    start = size.divided(scale)
    if start is None:
        multiples = f"a multiple of {scale}" if size.is_square else f"multiples of {scale}"
        raise UserError(f"--image-size {size.flag}: choose {multiples}, as this generator doubles its maps")
    return start


def in_format_of(conv: nn.Conv2d, maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) channels-last where the weights are: a linear layer's output, seen as maps, is not."""
    if conv.weight.is_contiguous(memory_format=torch.channels_last):
        return maps.contiguous(memory_format=torch.channels_last)
    return maps


def at_least_float32(values: Tensor) -> Tensor:
    """What a sigmoid or tanh is taken of. Of a bfloat16 number it has no more than 8 bits near 1, fewer than a pixel of
    the pool.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


@torch.no_grad()
def dcgan_init(module: nn.Module, std: float = 0.02) -> None:
    """Draw linear and convolution weights from N(0, std^2), BatchNorm weights from N(1, std^2), zero biases, in place.

    Radford, Metz, Chintala, ICLR 2016 (arXiv:1511.06434), section 3, and with BatchNorm as CMI's release has it.
    Running statistics stay as they are.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            layer.weight.normal_(1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, std)
            if layer.bias is not None:
                layer.bias.zero_()


@torch.no_grad()
def kaiming_init(module: nn.Module, norm_std: float = 0.02) -> None:
    """Draw linear and convolution weights from N(0, 2 / fan_in), BatchNorm weights from N(1, norm_std^2), zero biases,
    in place. He et al., ICCV 2015; with BatchNorm as SpaceshipNet's release has it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.normal_(1.0, norm_std)
        else:
            continue
        if layer.bias is not None:
            layer.bias.zero_()


@torch.no_grad()
def draw_small(*layers: nn.Module, std: float = 0.02) -> None:
    """Draw the layers' weights, BatchNorm's too, from N(0, std^2), and zero their biases, in place."""
    for layer in layers:
        layer.get_parameter("weight").normal_(0, std)
        layer.get_parameter("bias").zero_()
