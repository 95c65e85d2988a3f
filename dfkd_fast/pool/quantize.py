"""Images to bytes: the only place where the pool loses precision."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Quantize = Literal["round", "truncate"]

_CHUNK = 1 << 19
"""values that are scaled at a time on a CPU, so that the passes over them stay in its cache"""


def to_bytes(images: Tensor, quantize: Quantize) -> Tensor:
    """Images (B, C, H, W), [0, 1] after clamping, to uint8 (B, H, W, C): 255 x, rounded half to even or truncated.

    The released codes truncate. Raises ValueError for images that are not finite.
    """
    images = images.permute(0, 2, 3, 1)
    pixels = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    size = len(images) if images.is_cuda else max(1, _CHUNK // images.shape[1:].numel())
    scratch = torch.empty_like(images[:size])
    total = scratch.new_zeros(())
    for source, target in zip(images.split(size), pixels.split(size), strict=True):
        scaled = torch.mul(source, 255, out=scratch[: len(source)])
        total += scaled.sum()
        if quantize == "round":
            scaled.round_()
        target.copy_(scaled.clamp_(0, 255))
    if not total.isfinite():  # one wait for the device
        raise ValueError("pool: the images to add are not finite; the loss has diverged")
    return pixels
