"""`cam_margin_loss`: raise the class activation map of the pseudo-label up to a target."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..backend import native_ops, pick
from ..checks import check_float, check_range, check_same_device, check_vector
from ..registration import Operator, is_eager
from . import reference

Reduction = Literal["none", "mean", "sum"]
REDUCTIONS = get_args(Reduction)


def cam_margin_loss(
    features: Tensor,
    class_weights: Tensor,
    labels: Tensor,
    target: float | Tensor = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """max(0, target - M), where M is the class activation map of each sample's label (Tran et al., MUSE, CAM loss).

    M[b] = sum_k class_weights[labels[b], k] * features[b, k]: no bias, ReLU, normalisation or resizing.

    Args:
        features: (B, K, h, w), the last feature map before pooling; the only argument that gets a gradient.
        class_weights: (N, K), the classifier's weight, a constant.
        labels: (B,) int64 in [0, N).
        target: a number, or a map (h, w).
        reduction: "mean" or "sum" over samples and pixels, or "none".

    Returns:
        a scalar, or (B, h, w) for "none"; float32, or float64 for float64 features. Where M >= target it is 0 and so is
        the gradient.

    Raises:
        ValueError: a wrong shape, dtype, device or reduction, named; an empty batch; (on the CPU) a label out of range.
    """
    _check(features, class_weights, labels, target)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r}: choose none, mean or sum")
    backend = pick("cam_margin_loss", features.device.type, features.dtype)
    if backend == "reference":
        if is_eager():
            check_range("labels", labels, len(class_weights))
        margins = reference.cam_margins(features, class_weights, labels, target)
    else:
        target_map = target.expand(features.shape[2:]).float().contiguous() if isinstance(target, Tensor) else None
        number = 0.0 if isinstance(target, Tensor) else float(target)
        margins = _CamMargin.apply(features, class_weights.detach(), labels, target_map, number, backend)
    return _reduce(margins, reduction)


class _CamMargin(torch.autograd.Function):
    """Saves the class weights, the labels and one bit per pixel (a byte in memory); not the features."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        class_weights: Tensor,
        labels: Tensor,
        target_map: Tensor | None,
        target: float,
        backend: str,
    ) -> Tensor:
        margins, mask = _forward(features, class_weights, labels, target_map, target, backend)
        ctx.save_for_backward(mask, class_weights, labels)
        ctx.dtype, ctx.channels_last, ctx.backend = features.dtype, not features.is_contiguous(), backend
        return margins

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = _backward(grads[0], *ctx.saved_tensors, ctx.dtype, ctx.channels_last, ctx.backend)
        return grad, None, None, None, None, None


def _launch_forward(
    features: Tensor, class_weights: Tensor, labels: Tensor, target_map: Tensor | None, target: float, backend: str
) -> tuple[Tensor, Tensor]:
    check_range("labels", labels, len(class_weights))
    if not features.is_contiguous(memory_format=torch.channels_last):
        features = features.contiguous()
    arguments = (features, class_weights.contiguous(), labels.contiguous(), target_map, target)
    if backend == "native":
        return native_ops().cam_margin_forward(*arguments)
    from . import triton

    return triton.forward(*arguments)


def _launch_backward(
    grad_margins: Tensor,
    mask: Tensor,
    class_weights: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
    backend: str,
) -> Tensor:
    grad_features = _like_features(mask, class_weights, dtype, channels_last)
    # the gradient of a mean is one number, expanded
    arguments = (grad_margins.contiguous(), mask, class_weights.contiguous(), labels.contiguous(), grad_features)
    if backend == "native":
        native_ops().cam_margin_backward(*arguments)
    else:
        from . import triton

        triton.backward(*arguments)
    return grad_features


def _like_features(mask: Tensor, class_weights: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    batch, height, width = mask.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, class_weights.shape[1], height, width)
    return torch.empty(shape, dtype=dtype, device=mask.device, memory_format=memory_format)


def _fake_forward(features: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, _channels, height, width = features.shape
    margins = features.new_empty((batch, height, width), dtype=torch.float32)
    return margins, torch.empty_like(margins, dtype=torch.bool)


def _fake_backward(
    grad_margins: Tensor,
    mask: Tensor,
    class_weights: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
    channels_last: bool,
    backend: str,
) -> Tensor:
    return _like_features(mask, class_weights, dtype, channels_last)


_forward = Operator(
    "cam_margin_forward(Tensor features, Tensor class_weights, Tensor labels, Tensor? target_map, float target, "
    "str backend) -> (Tensor margins, Tensor mask)",
    _launch_forward,
    _fake_forward,
)
_backward = Operator(
    "cam_margin_backward(Tensor grad_margins, Tensor mask, Tensor class_weights, Tensor labels, ScalarType dtype, "
    "bool channels_last, str backend) -> Tensor",
    _launch_backward,
    _fake_backward,
)


def _check(features: Tensor, class_weights: Tensor, labels: Tensor, target: float | Tensor) -> None:
    check_float("features", features)
    check_float("class_weights", class_weights)
    if features.dim() != 4:
        raise ValueError(f"features: shape {tuple(features.shape)}, expected (B, K, h, w)")
    if features.numel() == 0:
        raise ValueError(f"features: empty batch, shape {tuple(features.shape)}")
    if class_weights.dim() != 2 or class_weights.shape[1] != features.shape[1]:
        raise ValueError(f"class_weights: shape {tuple(class_weights.shape)}, expected (classes, {features.shape[1]})")
    check_vector("labels", labels, torch.int64, len(features))
    check_same_device("class_weights", class_weights, "features", features)
    check_same_device("labels", labels, "features", features)
    if isinstance(target, Tensor):
        if target.shape not in (features.shape[2:], ()):
            raise ValueError(f"target: shape {tuple(target.shape)}, expected {tuple(features.shape[2:])} or a number")
        check_same_device("target", target, "features", features)


def _reduce(margins: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return margins
    return margins.sum() if reduction == "sum" else margins.mean()
