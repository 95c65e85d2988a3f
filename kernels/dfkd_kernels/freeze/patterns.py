"""Predicates on the nodes of a traced network: the few questions that the rewrite asks of a torch.fx graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..bn_act_moments.reference import GELU, GELU_TANH, HARDSIGMOID, HARDSWISH, LEAKY_RELU, RELU, RELU6, SILU

Modules = Mapping[str, nn.Module]


class Activation(NamedTuple):
    """What can be fused behind a BatchNorm."""

    code: int
    slope: float = 0.0
    """of leaky_relu below 0"""


_ACT_MODULES: dict[type, int] = {
    nn.ReLU: RELU,
    nn.ReLU6: RELU6,
    nn.SiLU: SILU,
    nn.Hardswish: HARDSWISH,
    nn.Hardsigmoid: HARDSIGMOID,
    nn.GELU: GELU,
    nn.LeakyReLU: LEAKY_RELU,
}
_ACT_FUNCTIONS: dict[Callable[..., Any], int] = {
    F.relu: RELU,
    F.relu_: RELU,
    torch.relu: RELU,
    torch.relu_: RELU,
    F.relu6: RELU6,
    F.silu: SILU,
    F.hardswish: HARDSWISH,
    F.hardsigmoid: HARDSIGMOID,
    F.gelu: GELU,
    F.leaky_relu: LEAKY_RELU,
    F.leaky_relu_: LEAKY_RELU,
}
_ACT_METHODS = {"relu": RELU, "relu_": RELU}

_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}

_POOL = {
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
    F.avg_pool2d,
    torch.mean,
    "mean",
}
_FLATTEN = {nn.Flatten, torch.flatten, torch.squeeze, "flatten", "view", "reshape", "squeeze"}
_DROPOUT = {nn.Dropout, nn.Dropout2d, nn.Identity, F.dropout, F.dropout2d}


def kind(node: fx.Node, modules: Modules) -> Any:
    """What a node calls: a module's class, a function, or a method's name; None for inputs, outputs and attributes."""
    if node.op == "call_module":
        return type(modules[str(node.target)])
    return node.target if node.op in ("call_function", "call_method") else None


def activation(node: fx.Node, modules: Modules) -> Activation | None:
    """The activation that this node applies, if it is one that can be fused; else None."""
    called = kind(node, modules)
    form: Any = "none"
    slope: Any = 0.01  # torch's default
    if node.op == "call_module":
        layer, code = modules[str(node.target)], _ACT_MODULES.get(called)
        form, slope = getattr(layer, "approximate", form), getattr(layer, "negative_slope", slope)
    else:
        table: Mapping[Any, int] = _ACT_METHODS if node.op == "call_method" else _ACT_FUNCTIONS
        code = table.get(called)
        form = node.kwargs.get("approximate", form)
        slope = node.kwargs.get("negative_slope", node.args[1] if len(node.args) > 1 else slope)
    if code == GELU:
        code = {"none": GELU, "tanh": GELU_TANH}.get(form)
    if code == LEAKY_RELU:
        return Activation(code, slope) if isinstance(slope, int | float) and slope >= 0 else None
    return None if code is None else Activation(code)


def passes_through(node: fx.Node, modules: Modules) -> bool:
    """Whether a node gives what it reads: nn.Identity, and torchvision's stochastic depth in eval mode."""
    called = kind(node, modules)
    if called is nn.Identity:
        return True
    home = getattr(called, "__module__", "") or ""
    training = node.args[3] if len(node.args) == 4 else node.kwargs.get("training", True)
    return (
        getattr(called, "__name__", "") == "stochastic_depth" and home.startswith("torchvision") and training is False
    )


def other_summand(node: fx.Node, summand: fx.Node, modules: Modules) -> fx.Node | None:
    """The second term of a plain sum of two values, if `node` is one and `summand` the first; else None."""
    if kind(node, modules) not in _ADD or len(node.args) != 2 or node.kwargs:
        return None
    rest = [term for term in node.args if term is not summand]
    return rest[0] if len(rest) == 1 and isinstance(rest[0], fx.Node) else None


def find_features(logits: fx.Node, modules: Modules) -> fx.Node | None:
    """The last feature map: what the global pooling before the classifier reads, or the flattening if none pools."""
    node: fx.Node | None = logits
    flattened = False
    while node is not None:
        called = kind(node, modules)
        if called in _POOL:
            return _input(node)
        if flattened and called not in _FLATTEN and called not in _DROPOUT:
            return node
        flattened = flattened or called in _FLATTEN
        node = _input(node)
    return None


def find_classifier(logits: fx.Node, features: fx.Node | None, modules: Modules) -> str | None:
    """The path of the Linear that maps the pooled features to the logits, if nothing else lies between; else None."""
    if kind(logits, modules) is not nn.Linear:
        return None
    node = _input(logits)
    while node is not None and kind(node, modules) in _POOL | _FLATTEN | _DROPOUT:
        node = _input(node)
    return str(logits.target) if node is not None and node is features else None


def _input(node: fx.Node) -> fx.Node | None:
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) else None
