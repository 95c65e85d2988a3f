"""The kind, arithmetic and traffic of an operator's kernel, as a roofline needs them.

FLOPs are those of convolutions and matrix products, a multiplication and an addition as two; bytes are each tensor of a
call once. An operator that is several kernels of different work, a convolution's backward pass, is told as several.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfkd_fast.costs.launches import launches, moved

CONV_KINDS = ("conv", "conv_input_grad", "conv_weight_grad", "conv_depthwise")
"""kinds whose rate is one of arithmetic"""
PRODUCTS = (*CONV_KINDS, "matmul")

_MATMULS = frozenset({"mm", "addmm", "bmm", "baddbmm"})
_CONVS = frozenset({"convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution"})
_KINDS: dict[str, frozenset[str]] = {
    "batch_norm": frozenset(
        {
            "native_batch_norm",
            "_native_batch_norm_legit",
            "cudnn_batch_norm",
            "native_group_norm",
            "bn_act_train_forward",
        }
    ),
    "batch_norm_grad": frozenset({"native_batch_norm_backward", "cudnn_batch_norm_backward", "bn_act_train_backward"}),
    "bn_act": frozenset({"bn_act_moments_forward", "bn_act_moments_plain_forward", "batch_moments_forward"}),
    "bn_act_grad": frozenset({"bn_act_moments_backward", "batch_moments_backward"}),
    "copy": frozenset(
        {
            "_to_copy",
            "copy_",
            "clone",
            "cat",
            "stack",
            "fill_",
            "zero_",
            "zeros",
            "ones",
            "full",
            "zeros_like",
            "contiguous",
        }
        | {"ones_like", "full_like", "new_zeros", "new_full", "new_ones", "constant_pad_nd", "flip", "roll", "repeat"}
        | {"slice_backward", "select_backward", "scalar_tensor", "arange", "_foreach_zero_", "_foreach_copy_"}
    ),
    "reduction": frozenset(
        {"sum", "mean", "var", "var_mean", "std", "norm", "linalg_vector_norm", "max", "min", "amax", "amin", "argmax"}
        | {"aminmax", "all", "any", "prod", "topk", "sort", "cumsum", "logsumexp", "bn_stat_loss", "cam_margin_forward"}
        | {"nll_loss_forward", "mse_loss", "kl_div"}
    ),
    "transcendental": frozenset(
        {"exp", "log", "log1p", "sigmoid", "tanh", "pow", "sqrt", "rsqrt", "_softmax", "_log_softmax", "gelu", "silu"}
        | {"softplus", "erf", "sin", "cos", "_softmax_backward_data", "_log_softmax_backward_data", "kd_kl_forward"}
        | {"kd_kl_backward", "kd_kl_priority_forward"}
    ),
    "gather": frozenset(
        {"index", "index_select", "index_add", "index_add_", "index_put", "index_put_", "_index_put_impl_", "gather"}
        | {"scatter", "scatter_", "scatter_add", "scatter_add_", "embedding", "embedding_dense_backward", "take"}
        | {"gather_augment", "grid_sampler_2d", "grid_sampler_2d_backward", "max_unpool2d", "priority_update"}
        | {"priority_sample", "multinomial", "masked_fill", "masked_fill_"}
    ),
    "random": frozenset(
        {
            "rand",
            "randn",
            "randint",
            "randperm",
            "normal_",
            "uniform_",
            "bernoulli",
            "bernoulli_",
            "random_",
            "rand_like",
        }
        | {"randn_like", "normal", "native_dropout", "exponential_"}
    ),
    "pool": frozenset(
        {"max_pool2d_with_indices", "max_pool2d_with_indices_backward", "avg_pool2d", "avg_pool2d_backward"}
        | {"_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward", "upsample_nearest2d", "upsample_nearest2d_backward"}
        | {"upsample_bilinear2d", "upsample_bilinear2d_backward", "_upsample_nearest_exact2d"}
    ),
}
_KIND_OF = {op: kind for kind, ops in _KINDS.items() for op in ops}
KINDS = (*PRODUCTS, *_KINDS, "optimizer", "elementwise")
"""every kind; what is in no list is elementwise"""


class Kernel(NamedTuple):
    """One kernel, or a few of the same work."""

    kind: str
    """one of `KINDS`"""
    op: str
    """the operator's name, without its namespace"""
    dtype: str
    """of its largest tensor: float32, bfloat16, ..."""
    flops: float
    bytes: int
    launches: int
    shape: tuple[int, ...] = ()
    """of a convolution (images, side of the smaller map, channels in, channels out, weights in a channel pair, groups,
    stride), of a matrix product (batches, m, n, k); empty for others
    """


def kernels_of(name: str, args: Sequence[Any], given: Sequence[Tensor], made: Sequence[Tensor]) -> Iterator[Kernel]:
    """The kernels of one call of the operator `name` ("aten::mm"), from its arguments and all tensors of the call."""
    op = name.partition("::")[2]
    kind = kind_of(op)
    if op in _CONVS:
        yield _conv("conv", op, args[0], args[1], made[0], transposed=bool(args[6]), groups=int(args[8]))
        return
    if op == "convolution_backward":
        yield from _conv_backward(op, args)
        return
    dtype = _dtype(given, made)
    if kind == "matmul":
        left, right = [each for each in given if each.dim() >= 2][-2:]
        m, k, n = left.shape[-2], left.shape[-1], right.shape[-1]
        batch = left.shape[0] if left.dim() == 3 else 1
        yield Kernel(kind, op, dtype, 2.0 * batch * m * n * k, moved(given, made), 1, (batch, m, n, k))
        return
    traffic = _gathered(given, made) if kind == "gather" else moved(given, made)
    yield Kernel(kind, op, dtype, 0.0, traffic, launches(name, args, given))


def kind_of(op: str) -> str:
    """The kind of an operator by its name without namespace; convolutions are told apart by their arguments."""
    if op in _MATMULS:
        return "matmul"
    if op.startswith(("_fused_adam", "_fused_sgd", "_fused_adamw")):
        return "optimizer"
    return _KIND_OF.get(op) or _KIND_OF.get(op.removesuffix("_")) or "elementwise"


def _conv(kind: str, op: str, x: Tensor, weight: Tensor, y: Tensor, *, transposed: bool, groups: int) -> Kernel:
    """A pass of a convolution from `x` to `y`, or what has their shapes. A transposed one is another's input gradient,
    and its input gradient that one's forward pass.
    """
    traffic = sum(tensor.numel() * tensor.element_size() for tensor in (x, weight, y))
    if transposed:
        x, y = y, x
        kind = {"conv": "conv_input_grad", "conv_input_grad": "conv"}.get(kind, kind)
    if groups > 1 and weight.shape[1] == 1:
        kind = "conv_depthwise"
    side = round(math.sqrt(math.prod(y.shape[2:])))
    pixels, area = len(y) * math.prod(y.shape[2:]), math.prod(weight.shape[2:])
    stride = max(1, round(math.sqrt(math.prod(x.shape[2:]) / max(math.prod(y.shape[2:]), 1))))
    shape = (len(y), side, x.shape[1], y.shape[1], area, groups, stride)
    return Kernel(kind, op, _dtype([weight], []), 2.0 * pixels * weight.numel(), traffic, 1, shape)


def _conv_backward(op: str, args: Sequence[Any]) -> Iterator[Kernel]:
    """The passes that the mask asks for; that of the bias is a reduction."""
    dy, x, weight, mask = args[0], args[1], args[2], args[10]
    for kind, is_asked in zip(("conv_input_grad", "conv_weight_grad"), mask, strict=False):
        if is_asked:
            yield _conv(kind, op, x, weight, dy, transposed=bool(args[7]), groups=int(args[9]))
    if mask[2]:
        yield Kernel("reduction", op, _dtype([dy], []), 0.0, dy.numel() * dy.element_size(), 1)


def _gathered(given: Sequence[Tensor], made: Sequence[Tensor]) -> int:
    """Bytes of rows that are read or written, not of the whole table: that is the largest tensor of the call."""
    tensors = list({id(tensor): tensor for tensor in (*given, *made)}.values())
    table = max(tensors, key=Tensor.numel)
    rest = [tensor for tensor in tensors if tensor is not table]
    rows = max((tensor.numel() for tensor in rest if tensor.dtype != torch.int64), default=0)
    rows = rows or max((tensor.numel() for tensor in rest), default=0)
    return moved(rest, []) + min(rows, table.numel()) * table.element_size()


def _dtype(given: Sequence[Tensor], made: Sequence[Tensor]) -> str:
    floats = [each for each in (*given, *made) if each.dtype.is_floating_point] or [*given, *made]
    largest = max(floats, key=Tensor.numel, default=torch.empty(0))
    return str(largest.dtype).removeprefix("torch.")
