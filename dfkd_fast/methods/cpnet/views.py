"""Views of CPNet's images beside crops and flips: in other colours, and mixed by CutMix.

Random numbers are drawn on the device for each image, so that steps can be captured.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

_LUMA = (0.299, 0.587, 0.114)


class Mixture(NamedTuple):
    """Images of which rectangles show other images of the batch."""

    images: Tensor
    """(B, C, H, W)"""
    partners: Tensor
    """(B,) int64, the image whose part each shows"""
    shares: Tensor
    """(B,), of its area"""


def cutmix(images: Tensor, probability: float) -> Mixture:
    """Paste a rectangle of another image into each, at the same place. Images (B, C, H, W), differentiable.

    CutMix (Yun et al., ICCV 2019) with alpha = 1: a rectangle of the image's shape, its share of the area uniform in
    [0, 1] before sides are cut to whole pixels, anywhere it fits; each image by itself, with this probability.
    """
    count, (height, width), device = len(images), images.shape[-2:], images.device
    partners = torch.rand(count, device=device).argsort()
    mixes, area, top, left = torch.rand(4, count, device=device)
    length = area.sqrt() * (mixes < probability)
    rows = _inside(top, (length * height).floor(), height)
    columns = _inside(left, (length * width).floor(), width)
    box = rows[:, :, None] & columns[:, None, :]
    shares = box.to(images.dtype).mean(dim=(1, 2))
    return Mixture(torch.where(box[:, None], images.index_select(0, partners), images), partners, shares)


def _inside(start: Tensor, length: Tensor, side: int) -> Tensor:
    """(B, side): which pixels lie in an interval of `length` (B,) pixels, `start` (B,) of the way to the last place."""
    first = (start * (side - length + 1)).floor()[:, None]
    places = torch.arange(side, device=start.device)
    return (places >= first) & (places < first + length[:, None])


class ColourJitter(nn.Module):
    """Changes brightness, contrast, saturation and hue of each image by itself, with a probability. Images (B, C, H, W)
    in [0, 1] -> the same; differentiable.

    Brightness, contrast and saturation are multiplied by factors uniform in 1 +- strength, as torchvision's ColorJitter
    has them; hue turns by up to `strength` of a circle around the grey axis, a linear map where that has HSV's hue. All
    four are one affine map of an image's colours. Of images without three channels only the first two are changed.
    """

    luma: Tensor
    """(C,): weights of the channels in a grey"""
    axis: Tensor
    """(3, 3): the cross product with the grey axis"""

    def __init__(self, channels: int, *, strength: float, probability: float) -> None:
        super().__init__()
        self.strength, self.probability = strength, probability
        luma = _LUMA if channels == 3 else (1 / channels,) * channels
        self.register_buffer("luma", torch.tensor(luma, dtype=torch.float64), persistent=False)
        axis = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
        self.register_buffer("axis", axis, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        drawn = 2 * torch.rand(5, len(images), device=images.device, dtype=images.dtype) - 1
        drawn = torch.where(drawn[4] < 2 * self.probability - 1, self.strength * drawn[:4], 0.0)
        brightness, contrast, saturation = (1 + drawn[:3])[:, :, None, None]
        with torch.autocast(images.device.type, enabled=False):  # 8 bits are fewer than a pixel's
            luma, axis = self.luma.to(images.dtype), self.axis.to(images.dtype)
            grey = (images * luma[:, None, None]).sum(dim=1).mean(dim=(1, 2))[:, None, None]
            colour = brightness * contrast * torch.eye(len(luma), device=images.device, dtype=images.dtype)
            if len(luma) == 3:
                colour = colour @ _turned(2 * math.pi * drawn[3], axis) @ _saturated(saturation, luma)
            changed = torch.baddbmm((1 - contrast) * brightness * grey, colour, images.flatten(2))
        return changed.clamp(0, 1).view_as(images)


def _saturated(factor: Tensor, luma: Tensor) -> Tensor:
    """(B, 3, 3): a colour's distance from its grey times `factor` (B, 1, 1)."""
    return factor * torch.eye(3, device=factor.device, dtype=factor.dtype) + (1 - factor) * luma.expand(3, 3)


def _turned(angle: Tensor, axis: Tensor) -> Tensor:
    """(B, 3, 3): turns colours by `angle` (B,) around the grey axis (Rodrigues' formula)."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    eye = torch.eye(3, device=angle.device, dtype=angle.dtype)
    return cos * eye + sin * axis + (1 - cos) / 3
