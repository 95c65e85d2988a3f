"""Steps that a segment of a frozen network runs: convolution, BatchNorm, sum and gate, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bn_act_moments import ops
from ..bn_act_moments.reference import RELU, TOLD_BY_OUTPUT, Moments, activate
from ..layout import dense, laid_out_like
from .convolution import FrozenConv2d, input_gradient, is_channels_last
from .norms import StatBatchNorm2d
from .packed import convolve

Grads = tuple[Tensor | None, ...]

SIGMOID = -1
"""beside the codes of activations, for gates"""


class MisfitError(Exception):
    """Values of different shapes or dtypes, which the layers one by one can add or multiply."""


class Made(NamedTuple):
    """What a step's forward pass gives."""

    y: Tensor
    moments: tuple[Tensor, ...] = ()
    """sum, sum_sq and count"""
    constants: tuple[Tensor, ...] = ()
    """for the backward pass, beside the values that the step keeps"""
    notes: Any = None
    """for the backward pass, no tensors of the batch's size"""


class Held(NamedTuple):
    """What a step's backward pass reads."""

    values: Sequence[Tensor]
    """that it keeps"""
    constants: Sequence[Tensor]
    notes: Any


class Step:
    """One step. It reads values by their numbers, and keeps some of them for its backward pass."""

    layers: Sequence[FrozenConv2d | StatBatchNorm2d] = ()
    moments = False
    """whether it hands out those of what it reads"""

    def __init__(self, sources: Sequence[int]) -> None:
        self.sources = tuple(sources)

    def keeps(self, number: int) -> tuple[int, ...]:
        """Numbers of the values that the backward pass reads; `number` is that of the step's own."""
        return ()

    def plain(self, *read: Tensor) -> tuple[Tensor, Moments | None]:
        """By the layers themselves, differentiable by autograd."""
        raise NotImplementedError

    def forward(self, read: Sequence[Tensor], backend: str) -> Made:
        """Without autograd. Raises MisfitError."""
        raise NotImplementedError

    def backward(self, dy: Tensor | None, dsums: Grads, held: Held, backend: str) -> Grads:
        """The gradient of each source, from those of y and of sum and sum_sq."""
        raise NotImplementedError


class Sum(Step):
    """Of two values of one shape."""

    def plain(self, *read: Tensor) -> tuple[Tensor, None]:
        return read[0] + read[1], None

    def forward(self, read: Sequence[Tensor], backend: str) -> Made:
        if read[0].shape != read[1].shape:
            raise MisfitError
        return Made(read[0] + read[1])

    def backward(self, dy: Tensor | None, dsums: Grads, held: Held, backend: str) -> Grads:
        return dy, dy


class Convolution(Step):
    """A FrozenConv2d."""

    def __init__(self, sources: Sequence[int], layer: FrozenConv2d) -> None:
        super().__init__(sources)
        self.layer, self.layers = layer, (layer,)

    def plain(self, *read: Tensor) -> tuple[Tensor, None]:
        return self.layer(*read), None

    def forward(self, read: Sequence[Tensor], backend: str) -> Made:
        (x,) = read
        layer = self.layer
        layer.check(x)
        weight, bias, back, way = layer.bound()
        y = convolve(x, weight, bias, way.geometry, way.packed, "forward")
        return Made(y, (), (back,), (x.shape, is_channels_last(x), way))

    def backward(self, dy: Tensor | None, dsums: Grads, held: Held, backend: str) -> Grads:
        shape, nhwc, way = held.notes
        return (None if dy is None else input_gradient(dy, held.constants[0], way, shape, nhwc=nhwc),)


class Norm(Step):
    """A StatBatchNorm2d, a residual if there is a second source, and an activation."""

    def __init__(
        self, sources: Sequence[int], layer: StatBatchNorm2d, *, act: int = 0, slope: float = 0.0, moments: bool = True
    ) -> None:
        super().__init__(sources)
        self.layer, self.layers = layer, (layer,)
        self.act, self.slope, self.moments = act, slope, moments

    def keeps(self, number: int) -> tuple[int, ...]:
        if len(self.sources) == 1 or not self.act:
            return self.sources[:1]
        return self.sources[0], number if self.act in TOLD_BY_OUTPUT else self.sources[1]

    def plain(self, *read: Tensor) -> tuple[Tensor, Moments | None]:
        found = self.layer(*read, act=self.act, slope=self.slope, moments=self.moments)
        return found if self.moments else (found, None)

    def forward(self, read: Sequence[Tensor], backend: str) -> Made:
        x, residual = dense(read[0]), None
        if len(read) == 2:
            residual = read[1]
            if residual.shape != x.shape:
                raise MisfitError
            residual = laid_out_like(residual, x)
        vectors = self.layer.vectors()
        if not self.moments:
            return Made(ops.plain_forward(x, *vectors, residual, self.act, self.slope, backend), (), vectors)
        y, stats = ops.forward(x, *vectors, residual, self.act, self.slope, backend)
        channels = x.shape[1]
        return Made(y, (stats[:channels], stats[channels : 2 * channels], stats[2 * channels]), vectors)

    def backward(self, dy: Tensor | None, dsums: Grads, held: Held, backend: str) -> Grads:
        x = dense(held.values[0])
        dsum, dsum_sq = (None if each is None else each.contiguous() for each in dsums) if dsums else (None, None)
        has_residual = len(self.sources) == 2
        if dy is None:
            nothing = dsum is None and dsum_sq is None
            dx = None if nothing else ops.batch_backward(x, held.constants[0], dsum, dsum_sq, backend)
            return (dx, None) if has_residual else (dx,)
        dy = laid_out_like(dy, x)
        inner = laid_out_like(held.values[1], x) if len(held.values) == 2 else None
        dx, dresidual = ops.backward(
            dy, x, *held.constants, inner, dsum, dsum_sq, self.act, self.slope, inner is not None, backend
        )
        if not has_residual:
            return (dx,)
        return dx, dy if inner is None else dresidual


class Gate(Step):
    """Squeeze-and-excitation: y * gate(excite(act(squeeze(mean of y))))."""

    def __init__(
        self, sources: Sequence[int], squeeze: FrozenConv2d, excite: FrozenConv2d, *, act: int, gate: int
    ) -> None:
        super().__init__(sources)
        self.squeeze, self.excite = self.layers = (squeeze, excite)
        self.act, self.gate = act, gate

    def keeps(self, number: int) -> tuple[int, ...]:
        return self.sources

    def plain(self, *read: Tensor) -> tuple[Tensor, None]:
        (y,) = read
        inner = self.excite(activate(self.squeeze(y.mean((2, 3), keepdim=True)), self.act, 0.0))
        return y * (inner.sigmoid() if self.gate == SIGMOID else activate(inner, self.gate, 0.0)), None

    def forward(self, read: Sequence[Tensor], backend: str) -> Made:
        (y,) = read
        self.squeeze.check(y)
        (down, down_bias, *_), (up, up_bias, *_) = self.squeeze.bound(), self.excite.bound()
        weights = down.flatten(1), up.flatten(1)
        before = F.linear(y.mean((2, 3)), weights[0], down_bias)
        inner = F.linear(activate(before, self.act, 0.0), weights[1], up_bias)
        gate = inner.sigmoid() if self.gate == SIGMOID else F.hardsigmoid(inner)
        return Made(y * gate[:, :, None, None], (), weights, (before, inner, gate))

    def backward(self, dy: Tensor | None, dsums: Grads, held: Held, backend: str) -> Grads:
        if dy is None:
            return (None,)
        (y,) = held.values
        before, inner, gate = held.notes
        squeeze, excite = held.constants
        aten = torch.ops.aten
        dgate = (dy * y).sum((2, 3))
        dinner = aten.sigmoid_backward(dgate, gate) if self.gate == SIGMOID else aten.hardsigmoid_backward(dgate, inner)
        dact = dinner @ excite
        dbefore = aten.threshold_backward(dact, before, 0) if self.act == RELU else aten.silu_backward(dact, before)
        dmean = (dbefore @ squeeze) / (y.shape[2] * y.shape[3])
        return (torch.addcmul(dmean[:, :, None, None], dy, gate[:, :, None, None]),)
