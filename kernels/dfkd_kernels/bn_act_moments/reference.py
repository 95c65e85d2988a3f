"""The fused kernels' specification in plain torch: differentiable by autograd, exact in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NONE, RELU, RELU6, SILU, HARDSWISH, HARDSIGMOID, GELU, GELU_TANH, LEAKY_RELU = range(9)
ACTIVATIONS: dict[str | None, int] = {
    None: NONE,
    "relu": RELU,
    "relu6": RELU6,
    "silu": SILU,
    "hardswish": HARDSWISH,
    "hardsigmoid": HARDSIGMOID,
    "gelu": GELU,
    "gelu_tanh": GELU_TANH,
    "leaky_relu": LEAKY_RELU,
}
TOLD_BY_OUTPUT = (RELU, RELU6, LEAKY_RELU)
"""activations whose derivative is known from their output"""


class Moments(NamedTuple):
    """Sums over the batch and all positions of one layer's values x, per channel; C channels.

    Sums about a shift near the mean keep the digits that sum(x^2) - sum(x)^2 loses, and need no division per element.
    """

    sum: Tensor
    """sum of x - shift, (C,), float32 (float64 for float64 inputs); differentiable"""
    sum_sq: Tensor
    """sum of (x - shift)^2, (C,); differentiable"""
    shift: Tensor
    """(C,), a constant"""
    count: Tensor  # type: ignore[assignment]  # tuple.count, of no use here
    """values per channel, (), a constant"""

    def mean(self) -> Tensor:
        """Batch mean per channel, (C,)."""
        return self.shift + self.sum / self.count

    def var(self, unbiased: bool = False) -> Tensor:
        """Batch variance per channel, (C,); divided by count - 1 instead of count if `unbiased`."""
        delta = self.sum / self.count
        var = self.sum_sq / self.count - delta * delta
        return var * (self.count / (self.count - 1)) if unbiased else var


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def activation_code(act: str | None) -> int:
    """The number by which the launchers know an activation."""
    if act not in ACTIVATIONS:
        raise ValueError(f"act {act!r}: choose {', '.join(repr(name) for name in ACTIVATIONS if name)} or None")
    return ACTIVATIONS[act]


def activate(x: Tensor, act: int, slope: float) -> Tensor:
    """The activation by torch's own function."""
    if act == LEAKY_RELU:
        return F.leaky_relu(x, slope)
    if act in (GELU, GELU_TANH):
        return F.gelu(x, approximate="tanh" if act == GELU_TANH else "none")
    plain = {RELU: F.relu, RELU6: F.relu6, SILU: F.silu, HARDSWISH: F.hardswish, HARDSIGMOID: F.hardsigmoid}
    return x if act == NONE else plain[act](x)


def bn_act_moments(
    x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, act: int, slope: float = 0.0
) -> tuple[Tensor, Moments]:
    """act((x - shift) * scale + bias [+ residual]) and the moments of x about `shift`. x (N, C, *), vectors (C,)."""
    centred = _centre(x, shift)
    per_channel = _per_channel_shape(x)
    y = centred * scale.view(per_channel) + bias.view(per_channel)
    if residual is not None:
        y = y + residual
    return activate(y, act, slope).to(x.dtype), _moments(centred, shift)


def batch_moments(x: Tensor, shift: Tensor) -> Moments:
    """Moments of x (N, C, *) about `shift` (C,)."""
    return _moments(_centre(x, shift), shift)


def _centre(x: Tensor, shift: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x.dtype)) - shift.view(_per_channel_shape(x))


def _per_channel_shape(x: Tensor) -> list[int]:
    return [-1] + [1] * (x.dim() - 2)


def _moments(centred: Tensor, shift: Tensor) -> Moments:
    dims = [dim for dim in range(centred.dim()) if dim != 1]
    count = centred.new_full((), centred.numel() // centred.shape[1])
    return Moments(centred.sum(dims), centred.square().sum(dims), shift, count)
