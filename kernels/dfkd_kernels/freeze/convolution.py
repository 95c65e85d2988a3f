"""A convolution that keeps no activation for its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .derived import DerivedLayer, has_hooks
from .packed import Geometry, PackedWeights, convolve

_DESCRIPTION = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    *("transposed", "output_padding"),
)
"""attributes of Conv2d that describe it"""


class Way(NamedTuple):
    """How a layer's input gradient is computed."""

    mirrors: bool
    """whether its weight is the mirrored one"""
    geometry: Geometry
    packed: PackedWeights | None


class _InputGradConv2d(torch.autograd.Function):
    """conv2d that saves its weight only: the input's gradient needs no input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mirrored: Tensor | None, way: Way) -> Tensor:
        ctx.save_for_backward(weight if mirrored is None else mirrored)
        ctx.shape, ctx.nhwc, ctx.way = x.shape, is_channels_last(x), way
        return convolve(x, weight, bias, way.geometry, way.packed, "forward")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return input_gradient(grads[0], weight, ctx.way, ctx.shape, nhwc=ctx.nhwc), *[None] * 4


def input_gradient(dy: Tensor, weight: Tensor, way: Way, shape: torch.Size, *, nhwc: bool) -> Tensor:
    """Of an input of `shape`, channels-last if `nhwc`."""
    stride, padding, dilation, groups = way.geometry
    if way.mirrors:
        rest = mirrored_padding(weight.shape[2:], padding, dilation)
        return convolve(dy, weight, None, ((1, 1), rest, dilation, 1), way.packed, "backward")
    # Only the shape and layout of x are read (the mask asks for dx alone), so an unwritten tensor stands in for it.
    # It has x's layout because the library chooses the gradient's layout by it.
    layout = torch.channels_last if nhwc else torch.contiguous_format
    x = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=layout)
    dx: Tensor = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
    )[0]
    return dx


def mirrored_padding(kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Padding of the convolution with the mirrored kernel that undoes the shapes of the given one."""
    return tuple(d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True))


class FrozenConv2d(DerivedLayer):
    """Conv2d whose weight is a constant: autograd keeps no activation for it (torch's own layer keeps its input).

    On a CPU a constant weight has a second use. With stride 1 the input's gradient is a convolution with the mirrored
    weight, and oneDNN's forward kernels are the faster ones: 1.6 to 4 times where the CPU multiplies bfloat16 matrices
    (AMX), equal elsewhere. So the mirrored weight is kept beside the weight. Of large weights, both are also kept in
    oneDNN's own layout from the first call on (`packed.py`).
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
        for name in _DESCRIPTION:  # some networks read their convolutions' strides or kernel sizes
            setattr(self, name, getattr(conv, name))
        stride, padding, dilation = tuple(conv.stride), tuple(int(side) for side in conv.padding), tuple(conv.dilation)
        self.geometry: Geometry = (stride, padding, dilation, conv.groups)
        simple = (
            stride == (1, 1) and conv.groups == 1 and min(mirrored_padding(conv.kernel_size, padding, dilation)) >= 0
        )
        self._mirrors, self._is_constant = simple and not share, not share
        self.register_buffer("mirrored", None, persistent=False)
        self._derive()

    def _derive(self) -> None:
        self._packed = PackedWeights() if self._is_constant else None
        self.mirrored = None
        if self._mirrors and self.weight.device.type == "cpu":
            layout = torch.channels_last if is_channels_last(self.weight) else torch.contiguous_format
            self.mirrored = self.weight.detach().flip(2, 3).transpose(0, 1).contiguous(memory_format=layout)
        way = Way(self.mirrored is not None, self.geometry, self._packed)
        self._bound = (self.weight, self.bias, self.weight if self.mirrored is None else self.mirrored, way)

    @staticmethod
    def why_not(conv: nn.Conv2d) -> str:
        """Why `conv` has no frozen form, or empty."""
        if type(conv) is not nn.Conv2d:
            return f"{type(conv).__name__} may compute something else than Conv2d"
        if has_hooks(conv):
            return "its hooks may compute something else than Conv2d"
        if conv.padding_mode != "zeros":
            return f"padding_mode {conv.padding_mode!r}"
        return f"padding {conv.padding!r}" if isinstance(conv.padding, str) else ""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, D, h, w).

        Raises:
            ValueError: x of another shape, or of another dtype than the weight's outside autocast.
        """
        self.check(x)
        weight, bias, mirrored = self.weight, self.bias, self.mirrored
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
            bias, mirrored = (None if tensor is None else tensor.to(dtype) for tensor in (bias, mirrored))
        # cast weights are not the layer's; torch.compile knows no opaque tensors
        packed = self._packed if weight is self.weight and not torch.compiler.is_compiling() else None
        if x.dtype != weight.dtype:
            raise ValueError(f"x: dtype {x.dtype}, expected the network's {weight.dtype}")
        if not (torch.is_grad_enabled() and x.requires_grad):
            return convolve(x, weight, bias, self.geometry, packed, "forward")
        way = Way(mirrored is not None, self.geometry, packed)
        out: Tensor = _InputGradConv2d.apply(x, weight, bias, mirrored, way)
        return out

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless x has the channels that the layer reads."""
        channels = self.weight.shape[1] * self.geometry[3]
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"x: shape {tuple(x.shape)}, expected (B, {channels}, H, W)")

    def bound(self) -> tuple[Tensor, Tensor | None, Tensor, Way]:
        """Weight and bias; the weight for the backward pass and how it is used."""
        return self._bound


def is_channels_last(x: Tensor) -> bool:
    """Whether x (B, C, H, W) lies channels-last in memory and not also row by row."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
