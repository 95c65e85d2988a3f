"""The reference stream: plain torch, one operation after another. The others are tested against it."""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd_fast.augment import CropFlip, shift_flip
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.pool.storage import Storage
from dfkd_fast.pool.stream import AugmentSpec, DirectStream


def torch_stream(storage: Storage, view: AugmentSpec, runtime: Runtime) -> DirectStream:
    """Gather, shift and flip bytes, then look each one up in the table of its normalised values."""
    table = normalized_values(view, torch.float64 if runtime.compute_dtype == torch.float64 else torch.float32).to(
        runtime.device
    )

    def augment(images: Tensor, rows: Tensor, params: CropFlip) -> Tensor:
        pixels = images[rows.to(images.device)].to(runtime.device)
        moved = shift_flip(pixels.permute(0, 3, 1, 2), params).long()
        channels = torch.arange(moved.shape[1], device=runtime.device).view(1, -1, 1, 1)
        return table[moved, channels].to(runtime.compute_dtype, memory_format=runtime.memory_format)

    return DirectStream(storage, augment)


def normalized_values(view: AugmentSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    """(256, C): (v / 255 - mean) / std of each byte v, computed in float64 and rounded once."""
    values = torch.arange(256, dtype=torch.float64)[:, None] / 255
    mean, std = (torch.tensor(numbers, dtype=torch.float64) for numbers in (view.info.mean, view.info.std))
    return ((values - mean) / std).to(dtype)
