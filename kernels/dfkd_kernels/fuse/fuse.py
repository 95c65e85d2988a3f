"""Give a network's BatchNorm2d layers their fused form in place, with the activations and residual sums behind them."""

from __future__ import annotations

import inspect
import operator
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..freeze.derived import has_hooks
from ..freeze.patterns import Modules, kind, other_summand
from .norm import BatchNormAct2d

_MARK = "_has_fused_forward"
_RELU = {nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
_LEAKY_RELU = {F.leaky_relu, F.leaky_relu_}
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem}


class FusedSequential(nn.Sequential):
    """An nn.Sequential that lets each BatchNorm apply the activation behind it; its layers stay what they are."""

    def forward(self, input: Any) -> Any:  # noqa: A002 - torch's own name
        """What the layers make of it, one after the other."""
        layers, value, applied = list(self), input, False
        behind = [slope_of_module(layer) for layer in layers[1:]]
        for layer, slope in zip(layers, [*behind, None], strict=True):
            if applied:
                applied = False
            elif type(layer) is BatchNormAct2d and slope is not None:
                value, applied = layer(value, None, slope), True
            else:
                value = layer(value)
        return value


def fuse_batchnorm_(network: nn.Module, *, trace: bool = True) -> list[str]:
    """Make every BatchNorm2d a `BatchNormAct2d` around the same tensors, and let it do what follows it.

    The keys of `state_dict`, the parameters and, up to rounding, all results stay the same; evaluation is torch's own.
    Where torch.fx traces the network, to the same code in training and in evaluation mode, bn -> act, bn -> add and
    bn -> add -> act (relu or leaky_relu) are fused wherever nobody else reads what lies between, and `network.forward`
    is the traced code: the calls of its blocks are inlined. Elsewhere an activation is fused that stands behind its
    BatchNorm in an nn.Sequential, which becomes a `FusedSequential`. Other classes of BatchNorm, nn.SyncBatchNorm among
    them, and layers with hooks are left alone. `unfuse_batchnorm_` undoes it.

    Args:
        network: changed in place; not one that is fused already.
        trace: False: go through the nn.Sequentials only, and never replace `forward`.

    Returns:
        a line for each layer, what is fused into it, and one that says why the network was not traced.
    """
    layers = {name: layer for name, layer in network.named_modules() if type(layer) is nn.BatchNorm2d}
    taken = {name: layer for name, layer in layers.items() if not has_hooks(layer)}
    for layer in taken.values():
        layer.__class__ = BatchNormAct2d
    lines, reason = _fuse_traced(network) if trace and taken else ({}, "")
    if not trace or reason:
        lines = _fuse_sequential(network)
    report = [f"{name}: {lines.get(name, 'alone') if name in taken else 'left alone, it has hooks'}" for name in layers]
    return [*report, *([f"network: not traced, {reason}"] if reason else [])]


def unfuse_batchnorm_(network: nn.Module) -> None:
    """Give back what `fuse_batchnorm_` has changed, in place."""
    for module in network.modules():
        if type(module) is BatchNormAct2d:
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        elif type(module) is FusedSequential:
            module.__class__ = nn.Sequential  # type: ignore[assignment]
        if vars(module).pop(_MARK, False):  # a forward that somebody else has put there stays
            del vars(module)["forward"]


class _Tracer(fx.Tracer):
    """Traces into blocks but not into layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.modules.batchnorm._BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _fuse_traced(network: nn.Module) -> tuple[dict[str, str], str]:
    """What was fused, by layer; or why the network cannot be traced."""
    if "forward" in vars(network):
        return {}, "somebody has replaced its forward"
    if len(inspect.signature(network.forward).parameters) != 1:
        return {}, "its forward takes more than one argument"
    if any(has_hooks(module) for module in network.modules() if not isinstance(module, BatchNormAct2d)):
        return {}, "it has hooks"
    modes = {module: module.training for module in network.modules()}
    graphs = []
    try:
        with torch.random.fork_rng(devices=[]):  # tracing runs the network's own Python
            for training in (False, True):
                network.train(training)
                graphs.append(_Tracer().trace(network))
    except Exception as error:  # anything may come out of a network's own Python
        return {}, f"torch.fx cannot ({(str(error).strip().splitlines() or [type(error).__name__])[0]})"
    finally:
        for module, training in modes.items():
            module.training = training
    codes = {graph.python_code("self").src for graph in graphs}
    if len(codes) > 1:
        return {}, "it computes something else in training than in evaluation mode"
    lines = fuse_graph(graphs[-1], dict(network.named_modules(remove_duplicate=False)))
    held = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    if any(node.op == "get_attr" and node.target not in held for node in graphs[-1].nodes):
        return {}, "its forward makes constants"
    vars(network)[_MARK] = True
    vars(network)["forward"] = MethodType(type(fx.GraphModule(network, graphs[-1])).forward, network)
    return lines, ""


def fuse_graph(graph: fx.Graph, modules: Modules) -> dict[str, str]:
    """Fuse the chains behind every `BatchNormAct2d` of a traced network; what into which, by the layer's path.

    Whatever the graph's output names is kept.
    """
    lines = {}
    order = {node: place for place, node in enumerate(graph.nodes)}
    for norm in [node for node in graph.nodes if kind(node, modules) is BatchNormAct2d]:
        if len(norm.args) != 1 or norm.kwargs:
            continue
        chain, residual, slope = _match(norm, modules)
        between = [node for node in graph.nodes if order.get(norm, 0) < order.get(node, -1) < order.get(chain[-1], 0)]
        if len(chain) == 1 or any(_writes(node, modules) for node in between if node not in chain):
            continue  # the fused call stands where the chain ends: what it reads must not be overwritten before
        with graph.inserting_before(chain[-1]):
            fused = graph.call_module(str(norm.target), (norm.args[0], residual, slope))
        order[fused] = order[chain[-1]]
        chain[-1].replace_all_uses_with(fused)
        for node in reversed(chain):
            graph.erase_node(node)
        parts = ["add"] * (residual is not None) + [_called(slope)] * (slope != 1)
        lines[str(norm.target)] = f"with {' and '.join(parts)}"
    graph.lint()
    return lines


def _match(norm: fx.Node, modules: Modules) -> tuple[list[fx.Node], fx.Node | None, float]:
    """The longest chain bn [-> add] [-> act] whose inner values nobody else reads; its residual, the slope of act."""
    user = _only_user(norm)
    if user is None:
        return [norm], None, 1.0
    slope = slope_of_node(user, modules)
    if slope is not None:
        return [norm, user], None, slope
    residual = other_summand(user, norm, modules)
    if residual is None or (_writes(user, modules) and user.args[0] is not norm):
        return [norm], None, 1.0
    after = _only_user(user)
    slope = None if after is None else slope_of_node(after, modules)
    if after is None or slope is None:
        return [norm, user], residual, 1.0
    return [norm, user, after], residual, slope


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def slope_of_node(node: fx.Node, modules: Modules) -> float | None:
    """The slope below zero of the relu or leaky_relu that a node applies to its first argument; else None."""
    called = kind(node, modules)
    if node.op == "call_module":
        return slope_of_module(modules[str(node.target)])
    if called in _RELU:
        return 0.0
    if called not in _LEAKY_RELU:
        return None
    slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
    return float(slope) if isinstance(slope, int | float) and slope >= 0 else None


def slope_of_module(module: nn.Module) -> float | None:
    """The same of a layer."""
    if has_hooks(module):
        return None
    if type(module) is nn.ReLU:
        return 0.0
    return float(module.negative_slope) if type(module) is nn.LeakyReLU and module.negative_slope >= 0 else None


def _writes(node: fx.Node, modules: Modules) -> bool:
    """Whether a node may write into what it reads."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    called: Any = kind(node, modules)
    name = called if isinstance(called, str) else getattr(called, "__name__", "")
    return called in _IN_PLACE or name.endswith("_") or bool(node.kwargs.get("inplace"))


def _fuse_sequential(network: nn.Module) -> dict[str, str]:
    """Fuse activations into the BatchNorm before them in an nn.Sequential."""
    lines = {}
    for name, parent in network.named_modules():
        if type(parent) is not nn.Sequential:
            continue
        for (place, norm), (_, activation) in pairwise(parent.named_children()):
            slope = slope_of_module(activation)
            if type(norm) is BatchNormAct2d and slope is not None:
                parent.__class__ = FusedSequential
                lines[f"{name}.{place}" if name else place] = f"with {_called(slope)}"
    return lines


def _called(slope: float) -> str:
    return "relu" if slope == 0 else f"leaky_relu({slope:g})"
