"""`gather_augment`: a normalised training batch straight from a uint8 pool."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FORMATS = (torch.channels_last, torch.contiguous_format)


def gather_augment(
    pool: Tensor,
    indices: Tensor,
    shifts: Tensor,
    flips: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    pad: int,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Gather, zero-padded crop, horizontal flip and normalisation of `pool[indices]` in one launch: (B, C, H, W).

    `pool` (P, H, W, C) uint8, contiguous; `indices` (B,) int64 in [0, P); `shifts` (B, 2) int64, the (dy, dx) of the
    crop window, each within [-pad, pad] (what lies beyond is clamped); `flips` (B,) bool. `mean` and `std` are C
    numbers each, in units of [0, 1]. Output pixel (y, x) before the flip is pool pixel (y + dy, x + dx), or the value
    0 outside the image; then the flip; then (value / 255 - mean) / std, read from a 256 x C float32 table, so that
    float32 results are equal bit for bit on every backend. Raises ValueError naming the argument that is wrong.
    """
    _check(pool, indices, shifts, flips, pad)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype}; choose one of {', '.join(str(d) for d in DTYPES)}")
    if memory_format not in FORMATS:
        raise ValueError(f"memory_format: {memory_format}; choose torch.channels_last or torch.contiguous_format")
    mean, std = _channel_values("mean", mean, pool.shape[3]), _channel_values("std", std, pool.shape[3])
    if not all(value > 0 for value in std):
        raise ValueError(f"std: positive numbers needed, not {std}")
    table = _table(mean, std, pool.device, dtype)
    out = reference.gather_augment(pool, indices, shifts, flips, table, pad=pad, dtype=dtype)
    return out.contiguous(memory_format=memory_format)


@lru_cache(maxsize=64)
def _table(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return reference.pixel_table(mean, std, device, torch.float64 if dtype == torch.float64 else torch.float32)


def _channel_values(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    result = tuple(float(value) for value in values)
    if len(result) != channels:
        raise ValueError(f"{name}: {len(result)} values, but the pool has {channels} channels")
    return result


def _check(pool: Tensor, indices: Tensor, shifts: Tensor, flips: Tensor, pad: int) -> None:
    if pool.dtype != torch.uint8 or pool.ndim != 4 or pool.numel() == 0 or not pool.is_contiguous():
        raise ValueError(f"pool: contiguous non-empty uint8 (P, H, W, C) needed, not {pool.dtype} {tuple(pool.shape)}")
    if indices.ndim != 1 or indices.dtype != torch.int64 or len(indices) == 0:
        raise ValueError(f"indices: non-empty int64 (B,) needed, not {indices.dtype} {tuple(indices.shape)}")
    if shifts.shape != (len(indices), 2) or shifts.dtype != torch.int64:
        raise ValueError(f"shifts: int64 ({len(indices)}, 2) needed, not {shifts.dtype} {tuple(shifts.shape)}")
    if flips.shape != indices.shape or flips.dtype != torch.bool:
        raise ValueError(f"flips: bool ({len(indices)},) needed, not {flips.dtype} {tuple(flips.shape)}")
    if pad < 0:
        raise ValueError(f"pad: 0 or more pixels, not {pad}")
