"""`bn_act_train`: checks, running statistics, dispatch, the operators of torch.library and their autograd function.

The last argument of both operators is the backend that runs them, "triton" or "native". Schemas: NATIVE.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..backend import pick
from ..bn_act_moments.reference import accumulation_dtype
from ..checks import check_activation, check_channels, check_residual
from ..layout import dense, laid_out_like
from ..registration import Operator, launcher
from . import reference

Activation = Literal["relu", "leaky_relu"]


def bn_act_train(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    act: Activation | None = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """BatchNorm by the batch's own statistics, an optional residual and an activation: act(bn(x) [+ residual]).

    Args:
        x: (N, C, *), contiguous or channels-last (other layouts are copied), floating.
        running_mean, running_var: (C,), moved towards the batch's mean and unbiased variance, in place; or None.
        weight, bias: (C,) or None, differentiable, of any floating dtype.
        momentum: the batch's share in the running statistics, a number or a tensor () on the device.
        eps: BatchNorm's epsilon, above 0.
        residual: added before the activation, of x's shape and dtype; differentiable.
        act: "relu", "leaky_relu" or None.
        negative_slope: of "leaky_relu", 0 or more.

    Returns:
        y of x's shape, dtype and layout. Its second derivatives are made of plain torch operations, and slow.

    Raises:
        ValueError: a wrong shape, dtype, device, epsilon or activation, named; fewer than two values in a channel.
    """
    check_activation(x)
    check_channels(x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    check_residual(x, residual)
    if not eps > 0:
        raise ValueError(f"eps: {eps}, expected a number above 0")
    slope = slope_of(act, negative_slope)
    running = None if running_mean is None or running_var is None else (running_mean, running_var)
    return bn_act_train_checked(x, running, weight, bias, momentum, eps, residual, slope)


def slope_of(act: str | None, negative_slope: float) -> float:
    """The activation's slope below zero, by which the launchers know it; 1 stands for no activation."""
    if act not in (None, "relu", "leaky_relu"):
        raise ValueError(f"act {act!r}: choose 'relu', 'leaky_relu' or None")
    if act == "leaky_relu" and not negative_slope >= 0:
        raise ValueError(f"negative_slope: {negative_slope}, expected 0 or more")
    return {None: 1.0, "relu": 0.0}.get(act, negative_slope)


def bn_act_train_checked(
    x: Tensor,
    running: tuple[Tensor, Tensor] | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float | Tensor,
    eps: float,
    residual: Tensor | None,
    slope: float,
) -> Tensor:
    """`bn_act_train` from arguments that fit together."""
    if x.numel() == x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
    dtype = accumulation_dtype(x.dtype)
    weight = None if weight is None else weight.to(dtype).contiguous()
    bias = None if bias is None else bias.to(dtype).contiguous()
    backend = pick("bn_act_train", x.device.type, x.dtype)
    if backend == "reference":
        y, stats = reference.bn_act_train(x, weight, bias, residual, eps, slope)
    else:
        x = dense(x)
        residual = None if residual is None else laid_out_like(residual, x)
        y, stats = _BnActTrain.apply(x, weight, bias, residual, eps, slope, backend)
    if running is not None:
        _move(running, stats, momentum)
    return y


@torch.no_grad()
def _move(running: tuple[Tensor, Tensor], stats: Tensor, momentum: float | Tensor) -> None:
    """The running mean and variance towards the batch's: running + momentum * (batch - running)."""
    batch = [moment.to(own.dtype) for moment, own in zip((stats[0], stats[2]), running, strict=True)]
    if isinstance(momentum, Tensor):
        for own, moment in zip(running, batch, strict=True):
            own.lerp_(moment, momentum.to(own.dtype))
    else:
        torch._foreach_lerp_(list(running), batch, momentum)


def _fake_backward(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    want_dresidual, stats = rest[-2], rest[-4]
    return torch.empty_like(x), torch.empty_like(x) if want_dresidual else x.new_empty(0), torch.empty_like(stats[:2])


forward = Operator(
    "bn_act_train_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, float slope,"
    " str backend) -> (Tensor, Tensor)",
    launcher(f"{__package__}.launch", "forward", native="bn_act_train_forward"),
    lambda x, *_: (torch.empty_like(x), x.new_empty(3, x.shape[1], dtype=torch.float32)),
)
backward = Operator(
    "bn_act_train_backward(Tensor dy, Tensor x, Tensor? y, Tensor? weight, Tensor? bias, Tensor stats, float slope,"
    " bool want_dresidual, str backend) -> (Tensor, Tensor, Tensor)",
    launcher(f"{__package__}.launch", "backward", native="bn_act_train_backward"),
    _fake_backward,
)


class _BnActTrain(torch.autograd.Function):
    """(x, weight, bias, residual) -> (y, stats); x and residual share one layout, and stats has no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        eps: float,
        slope: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        y, stats = forward(x, weight, bias, residual, eps, slope, backend)
        # without a residual the sign of the activation's input is recomputed from x; else y, which the next layer
        # reads anyway, tells it
        ctx.save_for_backward(x, weight, bias, stats, y if residual is not None and slope != 1 else None)
        ctx.eps, ctx.slope, ctx.backend = eps, slope, backend
        ctx.mark_non_differentiable(stats)
        return y, stats

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, stats, y = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            return *_differentiable(ctx, grads[0], needs), None, None, None
        dy = laid_out_like(grads[0], x)
        want_dresidual = needs[3] and ctx.slope != 1
        dx, dresidual, dparams = backward(dy, x, y, weight, bias, stats, ctx.slope, want_dresidual, ctx.backend)
        found = (dx, dparams[0], dparams[1], dresidual if want_dresidual else dy)
        return *(value if need else None for value, need in zip(found, needs, strict=True)), None, None, None


def _differentiable(ctx: Any, dy: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients of x, weight, bias and residual as plain torch operations, which have gradients themselves."""
    x, weight, bias, _, y = ctx.saved_tensors
    plain, _ = reference.bn_act_train(x, weight, bias, None, ctx.eps, 1.0)
    if ctx.slope != 1:
        dy = torch.where((plain if y is None else y) > 0, dy, dy * ctx.slope)
    inputs = [value if need else None for value, need in zip((x, weight, bias), needs, strict=False)]
    asked = [value for value in inputs if value is not None]
    found = iter(torch.autograd.grad(plain, asked, dy, create_graph=True) if asked else ())
    return [*(None if value is None else next(found) for value in inputs), dy if needs[3] else None]
