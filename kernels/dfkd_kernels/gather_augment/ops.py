"""`gather_augment`: a normalised training batch straight from a uint8 pool."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..backend import native_ops, pick
from ..checks import check_float, check_range, check_same_device, check_vector
from ..registration import Operator
from . import reference

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
    """Gather pool[indices], crop from the zero-padded image, flip and normalise, in one launch.

    Output pixel (y, x) before the flip is pool pixel (y + dy, x + dx), or the value 0 outside the image; then the flip;
    then (value / 255 - mean) / std, read from a 256 x C float32 table: float32 results are equal bit for bit on every
    backend. There is no gradient.

    Args:
        pool: (P, H, W, C) uint8, contiguous. With the other tensors on a GPU it may also be a pinned CPU tensor, which
            is read in place, so that the pool need not fit the card.
        indices: (B,) int64 in [0, P).
        shifts: (B, 2) int64, (dy, dx) of the crop window in [-pad, pad]; values beyond are clamped.
        flips: (B,) bool, horizontal.
        mean, std: C numbers each, in units of [0, 1].
        pad: width of the zero border, in pixels.
        dtype: of the result: float32, float16, bfloat16, or float64 (from a float64 table).
        memory_format: channels_last or contiguous_format.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: a wrong shape, dtype, device or value, named; an empty batch; (on the CPU) an index out of range.
    """
    _check(pool, indices, shifts, flips)
    if pad < 0:
        raise ValueError(f"pad: {pad}, expected 0 or more pixels")
    check_float("dtype", torch.empty(0, dtype=dtype))
    if memory_format not in FORMATS:
        raise ValueError(f"memory_format: {memory_format}, choose torch.channels_last or torch.contiguous_format")
    means, stds = _channel_values("mean", mean, pool), _channel_values("std", std, pool)
    if not all(value > 0 for value in stds):
        raise ValueError(f"std: {tuple(stds)}, expected positive numbers")
    backend = pick("gather_augment", indices.device.type, dtype)
    if backend == "reference":
        check_same_device("pool", pool, "indices", indices)
    channels_last = memory_format == torch.channels_last
    result: Tensor = _gather(pool, indices, shifts, flips, means, stds, pad, dtype, channels_last, backend)
    return result


def _launch(
    pool: Tensor,
    indices: Tensor,
    shifts: Tensor,
    flips: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    pad: int,
    dtype: torch.dtype,
    channels_last: bool,
    backend: str,
) -> Tensor:
    check_range("indices", indices, len(pool))
    table = _table(tuple(mean), tuple(std), indices.device, dtype == torch.float64)
    if backend == "reference":
        out = reference.gather_augment(pool, indices, shifts, flips, table, pad=pad, dtype=dtype)
        return out if channels_last else out.contiguous()
    out = _empty(pool, indices, dtype, channels_last)
    arguments = (pool, indices.contiguous(), shifts.contiguous(), flips.contiguous(), table, pad, out)
    if backend == "native":
        native_ops().gather_augment(*arguments)
    else:
        from . import triton

        triton.gather_augment(*arguments)
    return out


def _table(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, double: bool) -> Tensor:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _new_table(mean, std, device, double)  # memory of the graph must not outlive it in the cache
    return _cached_table(mean, std, device, double)


def _new_table(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, double: bool) -> Tensor:
    return reference.pixel_table(mean, std, device, torch.float64 if double else torch.float32)


_cached_table = lru_cache(maxsize=64)(_new_table)


def _empty(pool: Tensor, indices: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    _, height, width, channels = pool.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (len(indices), channels, height, width)
    return torch.empty(shape, dtype=dtype, device=indices.device, memory_format=memory_format)


def _fake(pool: Tensor, indices: Tensor, *rest: Any) -> Tensor:
    dtype, channels_last = rest[-3:-1]
    return _empty(pool, indices, dtype, channels_last)


_gather = Operator(
    "gather_augment(Tensor pool, Tensor indices, Tensor shifts, Tensor flips, float[] mean, float[] std, int pad, "
    "ScalarType dtype, bool channels_last, str backend) -> Tensor",
    _launch,
    _fake,
    device_argument=1,
)


def _channel_values(name: str, values: Sequence[float], pool: Tensor) -> list[float]:
    result = [float(value) for value in values]
    if len(result) != pool.shape[3]:
        raise ValueError(f"{name}: {len(result)} values, but the pool has {pool.shape[3]} channels")
    return result


def _check(pool: Tensor, indices: Tensor, shifts: Tensor, flips: Tensor) -> None:
    if pool.dtype != torch.uint8:
        raise ValueError(f"pool: dtype {pool.dtype}, expected uint8")
    if pool.dim() != 4 or pool.numel() == 0 or not pool.is_contiguous():
        raise ValueError(f"pool: shape {tuple(pool.shape)}, expected a contiguous, non-empty (P, H, W, C)")
    if indices.dim() != 1 or len(indices) == 0:
        raise ValueError(f"indices: shape {tuple(indices.shape)}, expected a non-empty (B,)")
    check_vector("indices", indices, torch.int64, len(indices))
    check_vector("flips", flips, torch.bool, len(indices))
    if shifts.dtype != torch.int64 or shifts.shape != (len(indices), 2):
        raise ValueError(f"shifts: {shifts.dtype} {tuple(shifts.shape)}, expected int64 ({len(indices)}, 2)")
    check_same_device("shifts", shifts, "indices", indices)
    check_same_device("flips", flips, "indices", indices)
    if pool.device != indices.device and not (indices.is_cuda and pool.is_pinned()):
        raise ValueError(f"pool: on {pool.device}, but indices is on {indices.device} and the pool is not pinned")
