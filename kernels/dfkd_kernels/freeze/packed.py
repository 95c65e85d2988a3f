"""Weights that never change in the layout that oneDNN computes with: laid out once, not at every call.

The same kernels on the same numbers, so the same bits (`tests/kernels/test_packed_weights.py`); what is spared is a
copy of the weight at each call, up to a third of the time where the maps are small and the weights large.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..bn_act_moments import reference

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""stride, padding, dilation, groups"""

LEAST = 1 << 16
"""elements of a weight that is worth it: below, laying it out takes less time than can be measured"""


_NAMES: dict[int, tuple[str, list[float], str | None]] = {
    reference.NONE: ("none", [], None),
    reference.RELU: ("relu", [], None),
    reference.RELU6: ("hardtanh", [0.0, 6.0], None),
    reference.SILU: ("swish", [], None),
    reference.HARDSWISH: ("hardswish", [], None),
    reference.HARDSIGMOID: ("hardsigmoid", [], None),
    reference.GELU: ("gelu", [], "none"),
    reference.GELU_TANH: ("gelu", [], "tanh"),
}
"""oneDNN's activations behind a convolution: name, constants, algorithm"""


class PackedWeights:
    """The packed forms of one layer's constant weights, made when they are first used."""

    def __init__(self) -> None:
        self._by_way: dict[str, tuple[torch.Size, Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeights:
        return PackedWeights()

    def __reduce__(self) -> tuple[Any, ...]:
        """Packed weights are opaque, and packed anew on the other side."""
        return PackedWeights, ()

    def of(self, way: str, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        """`weight` (D, C / groups, k, l) laid out for inputs of x's shape, an opaque tensor.

        It is made anew when the shape changes, by which oneDNN chooses the layout; torch does that at every call.
        """
        shape, packed = self._by_way.get(way, (None, weight))
        if shape != x.shape:
            stride, padding, dilation, groups = geometry
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                weight.detach(), padding, stride, dilation, groups, list(x.shape)
            )
            self._by_way[way] = x.shape, packed
        return packed


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, packed: PackedWeights | None, way: str
) -> Tensor:
    """F.conv2d, with a packed weight where there are such and it pays; `way` says which of a layer's weights it is."""
    # a second derivative goes through torch's own operator
    if packed is None or torch.is_grad_enabled() or not _pays(x, weight, geometry):
        return F.conv2d(x, weight, bias, *geometry)
    stride, padding, dilation, groups = geometry
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, packed.of(way, x, weight, geometry), bias, padding, stride, dilation, groups, "none", [], None
    )
    return y


def convolve_act(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, packed: PackedWeights, act: int, slope: float
) -> Tensor | None:
    """act(conv(x)) as one operator, without gradients; None where there is no such operator."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype != weight.dtype or not _can(x):
        return None
    if torch.is_autocast_enabled("cpu") or x.shape[1] != weight.shape[1] * geometry[3]:
        return None
    stride, padding, dilation, groups = geometry
    name = ("leaky_relu", [slope], None) if act == reference.LEAKY_RELU else _NAMES[act]
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, packed.of("forward", x, weight, geometry), bias, padding, stride, dilation, groups, *name
    )
    return y


def _pays(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether a packed weight is worth it, and gives the same bits."""
    if weight.numel() < LEAST or not _can(x):
        return False
    stride, _, dilation, _ = geometry
    plain = weight.shape[2:].numel() == stride[0] == stride[1] == dilation[0] == dilation[1] == 1
    # these few torch does not give to oneDNN, whose sums are others
    return not (x.dtype == torch.float32 and plain and x.shape[0] < 16 and torch.get_num_threads() == 1)


def _can(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if not x.is_contiguous(memory_format=torch.channels_last):  # the output's layout would be another than torch's
        return False
    return not is_in_torch_dispatch_mode() and _has_packing(x.dtype)  # who counts operators counts torch's


def _has_packing(dtype: torch.dtype) -> bool:
    return bool(torch.backends.mkldnn.enabled) and _is_built_in(dtype)


@functools.cache
def _is_built_in(dtype: torch.dtype) -> bool:
    """Whether this torch, on this processor, has the operators."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
