"""The specification of `gather_augment` in plain torch, and the pixel table that every backend reads."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pixel_table(
    mean: Sequence[float], std: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(256, C): entry [v, c] is (v / 255 - mean[c]) / std[c], computed in float64 and rounded once."""
    values = torch.arange(256, dtype=torch.float64, device=device) / 255
    columns = [(values - m) / s for m, s in zip(mean, std, strict=True)]
    return torch.stack(columns, dim=1).to(dtype)


def gather_augment(
    pool: Tensor, indices: Tensor, shifts: Tensor, flips: Tensor, table: Tensor, *, pad: int, dtype: torch.dtype
) -> Tensor:
    """Crop, flip and look up pool[indices]. (P, H, W, C) uint8 -> (B, C, H, W), channels-last in memory."""
    height, width, channels = pool.shape[1:]
    dy, dx = shifts.clamp(-pad, pad).unbind(1)
    x = torch.arange(width, device=pool.device).expand(len(indices), width)
    rows = torch.arange(height, device=pool.device) + dy[:, None]
    cols = torch.where(flips[:, None], width - 1 - x, x) + dx[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((cols >= 0) & (cols < width))[:, None, :]
    rows, cols = rows.clamp(0, height - 1), cols.clamp(0, width - 1)
    pixels = pool[indices[:, None, None], rows[:, :, None], cols[:, None, :]] * inside[..., None]
    entries = pixels.long() * channels + torch.arange(channels, device=pool.device)
    return table.flatten().take(entries).to(dtype).permute(0, 3, 1, 2)
