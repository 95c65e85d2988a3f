"""The layers of a frozen network: a convolution that keeps no activation, BatchNorms that hand out their moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backend import pick
from ..bn_moments.moments import Moments
from ..bn_moments.ops import batch_moments, bn_act_moments_folded
from ..bn_moments.reference import NONE, RELU, RELU6, accumulation_dtype

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""stride, padding, dilation, groups"""


class _InputGradConv2d(torch.autograd.Function):
    """conv2d that saves its weight only: the input's gradient needs no input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mirrored: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(weight if mirrored is None else mirrored)
        ctx.shape, ctx.geometry, ctx.is_mirrored = x.shape, geometry, mirrored is not None
        ctx.memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        if ctx.is_mirrored:
            rest = mirrored_padding(weight.shape[2:], padding, dilation)
            return F.conv2d(grads[0], weight, None, 1, rest, dilation), None, None, None, None
        # Only the shape and layout of x are read (the mask asks for dx alone), so an unwritten tensor stands in for it.
        # It has x's layout because the library chooses the gradient's layout by it.
        x = torch.empty(ctx.shape, dtype=weight.dtype, device=weight.device, memory_format=ctx.memory_format)
        dx, _, _ = torch.ops.aten.convolution_backward(
            grads[0], x, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )
        return dx, None, None, None, None


def mirrored_padding(kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Padding of the convolution with the mirrored kernel that undoes the shapes of the given one."""
    return tuple(d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True))


class FrozenConv2d(nn.Module):
    """Conv2d whose weight is a constant: autograd keeps no activation for it (torch's own layer keeps its input).

    On a CPU a constant weight has a second use. With stride 1 the input's gradient is a convolution with the mirrored
    weight, and oneDNN's forward kernels are the faster ones: 1.6 to 4 times where the CPU multiplies bfloat16 matrices
    (AMX), equal elsewhere. So the mirrored weight is kept beside the weight.
    """

    weight: Tensor
    bias: Tensor | None
    mirrored: Tensor | None

    def __init__(self, conv: nn.Conv2d, *, share: bool = False) -> None:
        """Take over `conv`'s parameters (the same tensors) and geometry.

        Args:
            conv: a Conv2d proper.
            share: the weight will change, so nothing may be derived from it now.

        Raises:
            ValueError: a padding mode other than zeros, or padding given by name.
        """
        super().__init__()
        reason = self.why_not(conv)
        if reason:
            raise ValueError(f"conv: {reason}")
        self.weight, self.bias = conv.weight, conv.bias
        stride, padding, dilation = tuple(conv.stride), tuple(int(side) for side in conv.padding), tuple(conv.dilation)
        self.geometry: Geometry = (stride, padding, dilation, conv.groups)
        mirrored = None
        simple = (
            stride == (1, 1) and conv.groups == 1 and min(mirrored_padding(conv.kernel_size, padding, dilation)) >= 0
        )
        if simple and not share and conv.weight.device.type == "cpu":
            mirrored = conv.weight.detach().flip(2, 3).transpose(0, 1)
            layout = torch.channels_last if is_channels_last(conv.weight) else torch.contiguous_format
            mirrored = mirrored.contiguous(memory_format=layout)
        self.register_buffer("mirrored", mirrored, persistent=False)

    @staticmethod
    def why_not(conv: nn.Conv2d) -> str:
        """Why `conv` has no frozen form, or empty."""
        if type(conv) is not nn.Conv2d:
            return f"{type(conv).__name__} may compute something else than Conv2d"
        if conv.padding_mode != "zeros":
            return f"padding_mode {conv.padding_mode!r}"
        return f"padding {conv.padding!r}" if isinstance(conv.padding, str) else ""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, D, h, w).

        Raises:
            ValueError: x of another shape, or of another dtype than the weight's outside autocast.
        """
        weight, bias, mirrored = self.weight, self.bias, self.mirrored
        channels = weight.shape[1] * self.geometry[3]
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"x: shape {tuple(x.shape)}, expected (B, {channels}, H, W)")
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
            bias, mirrored = (None if tensor is None else tensor.to(dtype) for tensor in (bias, mirrored))
        if x.dtype != weight.dtype:
            raise ValueError(f"x: dtype {x.dtype}, expected the network's {weight.dtype}")
        if not (torch.is_grad_enabled() and x.requires_grad):
            return F.conv2d(x, weight, bias, *self.geometry)
        out: Tensor = _InputGradConv2d.apply(x, weight, bias, mirrored, self.geometry)
        return out


class StatBatchNorm2d(nn.Module):
    """An eval BatchNorm2d that also returns its input's batch moments; residual and activation can follow at once.

    The four vectors are the given layer's own tensors. They are folded into scale and offset at construction, or at
    every call if `share`, so that a layer in training can be watched.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor
    offset: Tensor

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm, *, share: bool = False) -> None:
        """Take over `norm`'s statistics and parameters.

        Raises:
            ValueError: a layer without running statistics, or of a class that may compute something else.
        """
        super().__init__()
        reason = self.why_not(norm)
        if reason:
            raise ValueError(f"norm: {reason}")
        self.eps, self.share = norm.eps, share
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("weight", None if norm.weight is None else norm.weight.detach())
        self.register_buffer("bias", None if norm.bias is None else norm.bias.detach())
        if not share:
            scale, offset = self._fold()
            self.register_buffer("scale", scale, persistent=False)
            self.register_buffer("offset", offset, persistent=False)

    @staticmethod
    def why_not(norm: nn.Module) -> str:
        """Why `norm` has no such form, or empty."""
        if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
            return f"{type(norm).__name__} may compute something else than BatchNorm2d"
        return "no running statistics" if norm.running_mean is None else ""

    def forward(
        self, x: Tensor, residual: Tensor | None = None, act: int = NONE, moments: bool = True
    ) -> Tensor | tuple[Tensor, Moments]:
        """x (B, C, H, W) -> act(bn(x) [+ residual]) of the same shape and, if asked for, the moments of x."""
        if not moments and pick("bn_act_moments", x.device.type, x.dtype) == "reference":
            return self._plain(x, residual, act)
        scale, offset = self._fold() if self.share else (self.scale, self.offset)
        shift = self.running_mean.to(scale.dtype)
        if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
            y, found = bn_act_moments_folded(x, shift, scale, offset, None, NONE)
            y = _activate(y + residual, act)  # a broadcast sum: no fused form
        else:
            y, found = bn_act_moments_folded(x, shift, scale, offset, residual, act)
        return (y, found) if moments else y

    # the fused forms give moments for nothing, the reference does not
    def _plain(self, x: Tensor, residual: Tensor | None, act: int) -> Tensor:
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return _activate(y if residual is None else y + residual, act)

    def _fold(self) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(self.running_var.dtype)
        scale = torch.rsqrt(self.running_var.to(dtype) + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.to(dtype)
        offset = torch.zeros_like(scale) if self.bias is None else self.bias.to(dtype)
        return scale, offset


class WatchedBatchNorm(nn.Module):
    """Any other BatchNorm over (B, C, H, W): its own eval output, and its input's moments."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.norm = norm

    @property
    def running_mean(self) -> Tensor:
        """(C,)"""
        assert self.norm.running_mean is not None
        return self.norm.running_mean

    @property
    def running_var(self) -> Tensor:
        """(C,)"""
        assert self.norm.running_var is not None
        return self.norm.running_var

    def forward(self, x: Tensor, moments: bool = True) -> Tensor | tuple[Tensor, Moments]:
        """x (B, C, H, W) -> the layer's output and, if asked for, the moments of x."""
        y: Tensor = self.norm(x)
        return (y, batch_moments(x, self.running_mean)) if moments else y


def _activate(y: Tensor, act: int) -> Tensor:
    if act == RELU:
        return F.relu(y)
    return F.relu6(y) if act == RELU6 else y


def is_channels_last(x: Tensor) -> bool:
    """Whether x (B, C, H, W) lies channels-last in memory and not also row by row."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
