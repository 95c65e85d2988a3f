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


def check_activation(x: Tensor) -> None:
    """Raise unless x is a non-empty (N, C, *) of a floating dtype."""
    check_float("x", x)
    if x.dim() < 2:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (N, C, *)")
    if x.numel() == 0:
        raise ValueError(f"x: empty batch, shape {tuple(x.shape)}")


def check_channels(x: Tensor, **vectors: Tensor | None) -> None:
    """Raise unless every vector is (C,), floating and on x's device."""
    for name, vector in vectors.items():
        if vector is None:
            continue
        if vector.shape != x.shape[1:2]:
            raise ValueError(
                f"{name}: shape {tuple(vector.shape)}, expected ({x.shape[1]},) as x has {x.shape[1]} channels"
            )
        if not vector.is_floating_point():
            raise ValueError(f"{name}: dtype {vector.dtype}, expected a floating dtype")
        if vector.device != x.device:
            raise ValueError(f"{name}: on {vector.device}, but x is on {x.device}")


def check_residual(x: Tensor, residual: Tensor | None) -> None:
    """Raise unless the residual matches x."""
    if residual is None:
        return
    if residual.shape != x.shape:
        raise ValueError(f"residual: shape {tuple(residual.shape)}, expected x's {tuple(x.shape)}")
    if residual.dtype != x.dtype:
        raise ValueError(f"residual: dtype {residual.dtype}, expected x's {x.dtype}")
    if residual.device != x.device:
        raise ValueError(f"residual: on {residual.device}, but x is on {x.device}")
