"""Find squeeze-and-excitation in a traced network: y * gate(excite(act(squeeze(mean of y))))."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..bn_act_moments.reference import HARDSIGMOID, RELU, SILU
from . import patterns
from .convolution import FrozenConv2d
from .steps import SIGMOID

_PRODUCT = {operator.mul, torch.mul, "mul"}
_SIGMOID = {nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"}
_POOL = {nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d}
_POINTWISE = ((1, 1), (0, 0), (1, 1), 1)


class Found(NamedTuple):
    """One of them."""

    y: fx.Node
    squeeze: FrozenConv2d
    excite: FrozenConv2d
    act: int
    code: int
    """of the gate"""
    hidden: tuple[fx.Node, ...]
    """what only the product reads, from the pooling on"""


def find(node: fx.Node, modules: patterns.Modules) -> Found | None:
    """What ends in this product, or None."""
    if patterns.kind(node, modules) not in _PRODUCT or len(node.args) != 2 or node.kwargs:
        return None
    for y, last in (node.args, node.args[::-1]):
        if isinstance(y, fx.Node) and isinstance(last, fx.Node):
            found = _chain(y, last, modules)
            if found is not None:
                return found
    return None


def _chain(y: fx.Node, last: fx.Node, modules: patterns.Modules) -> Found | None:
    nodes = [last]
    while len(nodes) < 5:
        source = nodes[-1].args[0] if nodes[-1].args else None
        if not isinstance(source, fx.Node) or source is y:
            return None
        nodes.append(source)
    gate, excite, act, squeeze, pool = nodes
    if any(len(each.users) != 1 for each in nodes) or not _pools(pool, y, modules):
        return None
    code, inner = _gate(gate, modules), patterns.activation(act, modules)
    down, up = (_pointwise(each, modules) for each in (squeeze, excite))
    if code is None or down is None or up is None or inner is None or inner.code not in (RELU, SILU):
        return None
    return Found(y, down, up, inner.code, code, tuple(nodes))


def _pools(pool: fx.Node, y: fx.Node, modules: patterns.Modules) -> bool:
    """Whether it is the mean of each of y's maps, (B, C, 1, 1)."""
    if not pool.args or pool.args[0] is not y:
        return False
    called = patterns.kind(pool, modules)
    if called in (torch.mean, "mean"):
        dims = pool.args[1] if len(pool.args) > 1 else pool.kwargs.get("dim")
        keeps = pool.args[2] if len(pool.args) > 2 else pool.kwargs.get("keepdim")
        return keeps is True and isinstance(dims, list | tuple) and sorted(map(str, dims)) in (["2", "3"], ["-1", "-2"])
    size: Any = pool.args[1] if len(pool.args) > 1 else pool.kwargs.get("output_size")
    if pool.op == "call_module":
        size = getattr(modules[str(pool.target)], "output_size", None)
    return called in _POOL and (size == 1 or (isinstance(size, list | tuple) and tuple(size) == (1, 1)))


def _gate(node: fx.Node, modules: patterns.Modules) -> int | None:
    if patterns.kind(node, modules) in _SIGMOID:
        return SIGMOID
    act = patterns.activation(node, modules)
    return HARDSIGMOID if act is not None and act.code == HARDSIGMOID else None


def _pointwise(node: fx.Node, modules: patterns.Modules) -> FrozenConv2d | None:
    layer = modules[str(node.target)] if node.op == "call_module" else None
    if not isinstance(layer, FrozenConv2d) or layer.geometry != _POINTWISE:
        return None
    return layer if tuple(layer.kernel_size) == (1, 1) else None  # type: ignore[arg-type]
