"""`bn_act_moments` and `batch_moments`: checks, constants in the accumulation dtype, dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import pick
from ..checks import check_float
from . import reference
from .layout import dense, laid_out_like
from .moments import Moments
from .operators import BatchMoments, BnAct, BnActMoments
from .reference import ACTIVATIONS, accumulation_dtype


def bn_act_moments(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    act: str | None = "relu",
) -> tuple[Tensor, Moments]:
    """Eval BatchNorm, an optional residual, an activation and the batch moments of x, in one pass over x.

    Args:
        x: BatchNorm's input, (N, C, *), contiguous or channels-last (other layouts are copied), floating.
        running_mean, running_var: (C,), the layer's statistics; running_mean is also the moments' shift.
        weight, bias: (C,) or None, the affine parameters. These four are constants: no gradient reaches them.
        eps: BatchNorm's epsilon, 0 or more.
        residual: added before the activation, of x's shape and dtype.
        act: "relu", "relu6" or None.

    Returns:
        y of x's shape, dtype and layout, and the `Moments` of x (not of y); both differentiable with respect to x.

    Raises:
        ValueError: a wrong shape, dtype, device, epsilon or activation, named; an empty batch.
    """
    check_input(x)
    check_vectors(x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    check_residual(x, residual)
    if not eps >= 0:
        raise ValueError(f"eps: {eps}, expected 0 or more")
    dtype = accumulation_dtype(x.dtype)
    shift = running_mean.detach().to(dtype).contiguous()
    scale = torch.rsqrt(running_var.detach().to(dtype) + eps)
    if weight is not None:
        scale = scale * weight.detach().to(dtype)
    offset = torch.zeros_like(shift) if bias is None else bias.detach().to(dtype).contiguous()
    return bn_act_moments_folded(x, shift, scale, offset, residual, activation_code(act))


def bn_act_moments_folded(
    x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, act: int
) -> tuple[Tensor, Moments]:
    """act((x - shift) * scale + bias [+ residual]) from checked arguments, vectors in the accumulation dtype."""
    backend = pick("bn_act_moments", x.device.type, x.dtype)
    if backend == "reference":
        return reference.bn_act_moments(x, shift, scale, bias, residual, act)
    x = dense(x)
    residual = None if residual is None else laid_out_like(residual, x)
    y, total, total_sq, count = BnActMoments.apply(x, residual, shift, scale, bias, act, backend)
    return y, Moments(total, total_sq, shift, count)


def bn_act_folded(x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, act: int) -> Tensor:
    """`bn_act_moments_folded` without the moments, whose last sum it spares."""
    backend = pick("bn_act_moments", x.device.type, x.dtype)
    if backend == "reference":
        return reference.bn_act_moments(x, shift, scale, bias, residual, act)[0]
    x = dense(x)
    residual = None if residual is None else laid_out_like(residual, x)
    y: Tensor = BnAct.apply(x, residual, shift, scale, bias, act, backend)
    return y


def batch_moments(x: Tensor, shift: Tensor | None = None) -> Moments:
    """Batch moments of x (N, C, *) per channel, in one read of x.

    Args:
        x: contiguous or channels-last (other layouts are copied), a floating dtype.
        shift: (C,), a constant near the mean, such as running_mean; None: one value of each channel.

    Raises:
        ValueError: a wrong shape, dtype or device, named; an empty batch.
    """
    check_input(x)
    if shift is None:
        shift = x.detach().flatten(2)[0, :, 0] if x.dim() > 2 else x.detach()[0]
    else:
        check_vectors(x, shift=shift)
    shift = shift.detach().to(accumulation_dtype(x.dtype)).contiguous()
    backend = pick("bn_act_moments", x.device.type, x.dtype)
    if backend == "reference":
        return reference.batch_moments(x, shift)
    total, total_sq, count = BatchMoments.apply(dense(x), shift, backend)
    return Moments(total, total_sq, shift, count)


def activation_code(act: str | None) -> int:
    """The number by which the launchers know an activation."""
    if act not in ACTIVATIONS:
        raise ValueError(f"act {act!r}: choose 'relu', 'relu6' or None")
    return ACTIVATIONS[act]


def check_input(x: Tensor) -> None:
    """Raise unless x is a non-empty (N, C, *) of a floating dtype."""
    check_float("x", x)
    if x.dim() < 2:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (N, C, *)")
    if x.numel() == 0:
        raise ValueError(f"x: empty batch, shape {tuple(x.shape)}")


def check_vectors(x: Tensor, **vectors: Tensor | None) -> None:
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
