"""Checks of arguments that several operators share: each raises ValueError and names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_float(name: str, tensor: Tensor) -> None:
    """Raise unless the dtype is one that the operators compute with."""
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{name}: dtype {tensor.dtype}, expected float16, bfloat16, float32 or float64")


def check_same_device(name: str, tensor: Tensor, owner: str, other: Tensor) -> None:
    """Raise unless `tensor` is where `other`, the argument `owner`, is."""
    if tensor.device != other.device:
        raise ValueError(f"{name}: on {tensor.device}, but {owner} is on {other.device}")


def check_vector(name: str, tensor: Tensor, dtype: torch.dtype, length: int) -> None:
    """Raise unless `tensor` is (length,) of this dtype."""
    if tensor.dtype != dtype:
        raise ValueError(f"{name}: dtype {tensor.dtype}, expected {dtype}")
    if tensor.shape != (length,):
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected ({length},)")


def check_range(name: str, indices: Tensor, size: int) -> None:
    """Raise if a CPU tensor holds an index outside [0, size). Elsewhere the kernels skip it: looking would
    synchronise.
    """
    if indices.device.type != "cpu" or indices.numel() == 0:
        return
    low, high = (int(bound) for bound in indices.aminmax())
    if low < 0 or high >= size:
        raise ValueError(f"{name}: {low if low < 0 else high} is outside [0, {size})")
