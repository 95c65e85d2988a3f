"""`bn_act_moments` and `batch_moments`: checks, dispatch, autograd, and the torch.library operators behind them.

The last argument of every operator is the backend that runs it, "triton" or "native"; the reference needs no operator.
Schemas and meanings: NATIVE.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import pick
from ..checks import check_activation, check_channels, check_residual
from ..layout import dense, laid_out_like
from ..registration import Operator, launcher, once_differentiable
from . import reference
from .reference import Moments, accumulation_dtype, activation_code


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
    slope: float = 0.01,
) -> tuple[Tensor, Moments]:
    """Eval BatchNorm, an optional residual, an activation and the batch moments of x, in one pass over x.

    Args:
        x: BatchNorm's input, (N, C, *), contiguous or channels-last (other layouts are copied), floating.
        running_mean, running_var: (C,), the layer's statistics; running_mean is also the moments' shift.
        weight, bias: (C,) or None, the affine parameters. These four are constants: no gradient reaches them.
        eps: BatchNorm's epsilon, 0 or more.
        residual: added before the activation, of x's shape and dtype.
        act: "relu", "relu6", "silu", "hardswish", "hardsigmoid", "gelu", "gelu_tanh", "leaky_relu" or None.
        slope: of leaky_relu below 0, itself 0 or more.

    Returns:
        y of x's shape, dtype and layout, and the `Moments` of x (not of y); both differentiable with respect to x.

    Raises:
        ValueError: a wrong shape, dtype, device, epsilon, slope or activation, named; an empty batch.
    """
    check_activation(x)
    check_channels(x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    check_residual(x, residual)
    if not eps >= 0:
        raise ValueError(f"eps: {eps}, expected 0 or more")
    if not slope >= 0:
        raise ValueError(f"slope: {slope}, expected 0 or more")
    dtype = accumulation_dtype(x.dtype)
    shift = running_mean.detach().to(dtype).contiguous()
    scale = torch.rsqrt(running_var.detach().to(dtype) + eps)
    if weight is not None:
        scale = scale * weight.detach().to(dtype)
    offset = torch.zeros_like(shift) if bias is None else bias.detach().to(dtype).contiguous()
    return bn_act_moments_folded(x, shift, scale, offset, residual, activation_code(act), slope)


def bn_act_moments_folded(
    x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, act: int, slope: float = 0.0
) -> tuple[Tensor, Moments]:
    """act((x - shift) * scale + bias [+ residual]) from checked arguments, vectors in the accumulation dtype."""
    backend = pick("bn_act_moments", x.device.type, x.dtype)
    if backend == "reference":
        return reference.bn_act_moments(x, shift, scale, bias, residual, act, slope)
    x = dense(x)
    residual = None if residual is None else laid_out_like(residual, x)
    y, total, total_sq, count = BnActMoments.apply(x, residual, shift, scale, bias, act, slope, backend)
    return y, Moments(total, total_sq, shift, count)


def bn_act_folded(
    x: Tensor, shift: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, act: int, slope: float = 0.0
) -> Tensor:
    """`bn_act_moments_folded` without the moments, whose last sum it spares."""
    backend = pick("bn_act_moments", x.device.type, x.dtype)
    if backend == "reference":
        return reference.bn_act_moments(x, shift, scale, bias, residual, act, slope)[0]
    x = dense(x)
    residual = None if residual is None else laid_out_like(residual, x)
    y: Tensor = BnAct.apply(x, residual, shift, scale, bias, act, slope, backend)
    return y


def batch_moments(x: Tensor, shift: Tensor | None = None) -> Moments:
    """Batch moments of x (N, C, *) per channel, in one read of x.

    Args:
        x: contiguous or channels-last (other layouts are copied), a floating dtype.
        shift: (C,), a constant near the mean, such as running_mean; None: one value of each channel.

    Raises:
        ValueError: a wrong shape, dtype or device, named; an empty batch.
    """
    check_activation(x)
    if shift is None:
        shift = x.detach().flatten(2)[0, :, 0] if x.dim() > 2 else x.detach()[0]
    else:
        check_channels(x, shift=shift)
    shift = shift.detach().to(accumulation_dtype(x.dtype)).contiguous()
    backend = pick("bn_act_moments", x.device.type, x.dtype)
    if backend == "reference":
        return reference.batch_moments(x, shift)
    total, total_sq, count = BatchMoments.apply(dense(x), shift, backend)
    return Moments(total, total_sq, shift, count)


def _stats_like(x: Tensor) -> Tensor:
    return x.new_empty(2 * x.shape[1] + 1, dtype=torch.float32)


def _fake_forward(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _stats_like(x)


def _fake_backward(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    want_dresidual = rest[-2]
    return torch.empty_like(x), torch.empty_like(x) if want_dresidual else x.new_empty(0)


forward = Operator(
    "bn_act_moments_forward(Tensor x, Tensor shift, Tensor scale, Tensor bias, Tensor? residual, int act, float slope,"
    " str backend) -> (Tensor, Tensor)",
    launcher(f"{__package__}.launch", "forward", native="bn_act_moments_forward"),
    _fake_forward,
)
plain_forward = Operator(
    "bn_act_moments_plain_forward(Tensor x, Tensor shift, Tensor scale, Tensor bias, Tensor? residual, int act,"
    " float slope, str backend) -> Tensor",
    launcher(f"{__package__}.launch", "plain_forward", native="bn_act_moments_forward", result=0),
    lambda x, *_: torch.empty_like(x),
)
backward = Operator(
    "bn_act_moments_backward(Tensor dy, Tensor x, Tensor shift, Tensor scale, Tensor bias, Tensor? kept, Tensor? dsum,"
    " Tensor? dsum_sq, int act, float slope, bool want_dresidual, str backend) -> (Tensor, Tensor)",
    launcher(f"{__package__}.launch", "backward", native="bn_act_moments_backward"),
    _fake_backward,
)
batch_forward = Operator(
    "batch_moments_forward(Tensor x, Tensor shift, str backend) -> Tensor",
    launcher(f"{__package__}.launch", "batch_forward", native="batch_moments_forward"),
    lambda x, *_: _stats_like(x),
)
batch_backward = Operator(
    "batch_moments_backward(Tensor x, Tensor shift, Tensor? dsum, Tensor? dsum_sq, str backend) -> Tensor",
    launcher(f"{__package__}.launch", "batch_backward", native="batch_moments_backward"),
    lambda x, *_: torch.empty_like(x),
)


class BnActMoments(torch.autograd.Function):
    """(x, residual) -> (y, sum, sum_sq, count). x and residual share one layout; the rest (shift, scale, bias, act,
    slope, backend) are constants.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, *constants: Any) -> tuple[Tensor, ...]:
        y, stats = forward(x, *constants[:3], residual, *constants[3:])
        _remember(ctx, x, residual, y, *constants)
        return y, *_split(ctx, stats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, dsum, dsum_sq = grads[0], _contiguous(grads[1]), _contiguous(grads[2])
        if dy is None:
            x, shift = ctx.saved_tensors[:2]
            return batch_backward(x, shift, dsum, dsum_sq, ctx.backend), *[None] * 7
        return *_gradients(ctx, dy, dsum, dsum_sq), *[None] * 6


class BnAct(torch.autograd.Function):
    """(x, residual) -> y of `BnActMoments`, where nobody asks for the moments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, *constants: Any) -> Tensor:
        y: Tensor = plain_forward(x, *constants[:3], residual, *constants[3:])
        _remember(ctx, x, residual, y, *constants)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grads[0], None, None), *[None] * 6


class BatchMoments(torch.autograd.Function):
    """x -> (sum, sum_sq, count) about a constant shift."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, backend: str) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, shift)
        ctx.backend = backend
        return _split(ctx, batch_forward(x, shift, backend))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dsum, dsum_sq = _contiguous(grads[0]), _contiguous(grads[1])
        x, shift = ctx.saved_tensors
        return batch_backward(x, shift, dsum, dsum_sq, ctx.backend), None, None


def _remember(ctx: Any, x: Tensor, residual: Tensor | None, y: Tensor, *constants: Any) -> None:
    """What the backward pass of y reads."""
    *vectors, act, ctx.slope, ctx.backend = constants
    # without a residual the activation's input is recomputed from x; else y, which the next layer reads anyway, says
    # what it let through, or the residual completes its input
    kept = y if act in reference.TOLD_BY_OUTPUT else residual
    ctx.save_for_backward(x, *vectors, kept if residual is not None and act else None)
    ctx.act = act


def _gradients(
    ctx: Any, dy: Tensor, dsum: Tensor | None, dsum_sq: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Of x and of the residual."""
    x, shift, scale, bias, kept = ctx.saved_tensors
    dy = laid_out_like(dy, x)
    want_dresidual = ctx.needs_input_grad[1] and ctx.act != 0
    constants = (ctx.act, ctx.slope, want_dresidual, ctx.backend)
    dx, dresidual = backward(dy, x, shift, scale, bias, kept, dsum, dsum_sq, *constants)
    if ctx.needs_input_grad[1] and not want_dresidual:
        dresidual = dy
    return dx, dresidual if ctx.needs_input_grad[1] else None


def _contiguous(grad: Tensor | None) -> Tensor | None:
    """What a plain .sum() sends back is one number, expanded."""
    return None if grad is None else grad.contiguous()


def _split(ctx: Any, stats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sum, sum_sq and count out of one launcher's vector. A gradient that nobody asked for stays None."""
    channels = stats.numel() // 2
    count = stats[2 * channels]
    ctx.mark_non_differentiable(count)
    ctx.set_materialize_grads(False)
    return stats[:channels], stats[channels : 2 * channels], count
