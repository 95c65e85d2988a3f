"""Images that are decoded already: as many channels as asked for, and another size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd_fast.pictures import Channels


def with_channels(images: Tensor, channels: Channels) -> Tensor:
    """(N, H, W, 1 or 3) uint8 -> (N, H, W, channels) uint8: grey repeated, or the luma of colours, as Pillow has it."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, -1, -1, 3).contiguous()
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32)  # ITU-R 601-2, in 16 bits
    grey = [(chunk.int() * weights).sum(-1, keepdim=True).add_(0x8000) >> 16 for chunk in images.split(1024)]
    return torch.cat(grey).to(torch.uint8)


def resized(images: Tensor, size: int | None) -> Tensor:
    """(N, S, S, C) uint8 -> (N, size, size, C) uint8, bilinear with antialiasing."""
    if size is None or images.shape[1] == size:
        return images
    scaled = [
        F.interpolate(chunk.permute(0, 3, 1, 2).float(), size=(size, size), mode="bilinear", antialias=True)
        for chunk in images.split(1024)
    ]
    return torch.cat([chunk.round().to(torch.uint8) for chunk in scaled]).permute(0, 2, 3, 1).contiguous()
