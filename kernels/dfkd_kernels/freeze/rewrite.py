"""Rewrite a traced network: BatchNorms hand out moments, bn -> act and bn -> add -> act become one operator."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from . import patterns
from .answers import logits_of
from .convolution import FrozenConv2d
from .norms import StatBatchNorm2d, WatchedBatchNorm
from .partition import join_layers

INPUT = ":input"
"""`layer2:input` names what module `layer2` reads, `layer2` what it gives"""


class Plan:
    """A rewritten graph and where its interesting values are; functions for any choice of outputs come from it.

    The graph is never changed once it is planned, so copies of a network share one plan.
    """

    def __init__(self, graph: fx.Graph, places: dict[str, fx.Node], modules: patterns.Modules) -> None:
        self.graph = graph
        self.places = places
        self.output = next(node for node in graph.nodes if node.op == "output")
        logits, _ = logits_of(self.output.args[0])
        self.output.args, self.output.type = (logits,), None  # pickle knows no annotation that is a string
        self.features = patterns.find_features(logits, modules) if isinstance(logits, fx.Node) else None
        self.classifier = patterns.find_classifier(logits, self.features, modules) if self.features else None
        self.norms: list[str] = []
        self.moments: list[fx.Node] = []
        self.report: list[str] = []

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let `new` stand for `old`, which leaves the graph: only before functions are made of it."""
        self.places = {name: new if node is old else node for name, node in self.places.items()}
        self.features = new if self.features is old else self.features

    def forget(self, gone: fx.Node) -> None:
        """No name stands for `gone` any more."""
        self.places = {name: node for name, node in self.places.items() if node is not gone}

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self

    def function(self, body: nn.Module, maps: Sequence[str], moments: bool) -> Callable[..., Any]:
        """Generate `run(body, x) -> (logits, features, moments[, maps])`."""
        graph = fx.Graph()
        twins: dict[fx.Node, fx.Node] = {}
        logits = graph.graph_copy(self.graph, twins)
        named = {name: twins[self.places[name]] for name in maps}
        features = None if self.features is None else twins[self.features]
        found = [twins[node] for node in self.moments]
        handed_out = found if moments else []
        graph.output((logits, features, handed_out, named) if maps else (logits, features, handed_out))
        if not moments:
            for node in found:
                drop_moments(graph, node)
        graph = join_layers(graph, dict(body.named_modules()))
        return type(fx.GraphModule(body, graph)).forward

    def check(self, maps: Sequence[str]) -> None:
        """Raise ValueError for a name that is no module, or whose output no longer exists."""
        for name in maps:
            if name not in self.places:
                outputs = (path for path in self.places if not path.endswith(INPUT))
                raise ValueError(
                    f"maps {name!r}: no such module, or its output is inside a fused operator (fuse=False keeps all); "
                    f"choose from {', '.join(sorted(outputs, key=lambda path: (path.count('.'), path)))}"
                )


class _Tracer(fx.Tracer):
    """Traces into blocks but not into layers, and remembers each module's input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, fx.Node] = {}

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The images alone: what else a network takes, such as CMI's `return_features=False`, keeps its default."""
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, (FrozenConv2d, StatBatchNorm2d, WatchedBatchNorm, nn.Conv2d))
        return layer or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not args and "input" in kwargs:  # the name that torch's layers give it
            args, kwargs = (kwargs["input"],), {key: value for key, value in kwargs.items() if key != "input"}
        out = super().call_module(m, forward, args, kwargs)
        path = self.path_of_module(m)
        if isinstance(out, fx.Proxy):
            self.places[path] = out.node
        if args and isinstance(args[0], fx.Proxy):
            self.places[path + INPUT] = args[0].node
        return out


def trace(model: nn.Module, fuse: bool) -> tuple[fx.GraphModule, Plan]:
    """Trace a network whose layers are already swapped, and rewrite its graph. What torch.fx cannot trace raises."""
    tracer = _Tracer()
    graph = tracer.trace(model)
    modules = dict(model.named_modules())
    _drop_identities(graph, tracer.places, modules)
    plan = Plan(graph, tracer.places, modules)
    norms = [node for node in graph.nodes if patterns.kind(node, modules) in (StatBatchNorm2d, WatchedBatchNorm)]
    for node in norms:
        _emit_moments(plan, node, modules, fuse)
    graph.lint()
    return fx.GraphModule(model, graph), plan


def _drop_identities(graph: fx.Graph, places: dict[str, fx.Node], modules: patterns.Modules) -> None:
    """Take out what only passes a value on: options that are off leave it between BatchNorm and activation or sum."""
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and patterns.passes_through(node, modules):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            places.update({name: source for name, place in places.items() if place is node})


def _emit_moments(plan: Plan, norm: fx.Node, modules: patterns.Modules, fuse: bool) -> None:
    """Replace a BatchNorm node, with what can be fused into it, by one call whose result is (y, moments)."""
    path = str(norm.target)
    chain: list[fx.Node] = [norm]
    residual, act = None, None
    if fuse and isinstance(modules[path], StatBatchNorm2d):
        chain, residual, act, reason = _match(norm, modules)
        if reason:
            plan.report.append(f"{path}: not fused, {reason}")
    elif fuse:
        plan.report.append(f"{path}: not fused, {StatBatchNorm2d.why_not(modules[path].norm)}")  # type: ignore[arg-type]
    last = chain[-1]
    kwargs: dict[str, Any] = {} if residual is None else {"residual": residual}
    if act is not None:
        kwargs |= {"act": act.code, "slope": act.slope} if act.slope else {"act": act.code}
    with plan.graph.inserting_before(last):
        pair = plan.graph.call_module(path, norm.args, kwargs)
        y = plan.graph.call_function(operator.getitem, (pair, 0))
        moments = plan.graph.call_function(operator.getitem, (pair, 1))
    last.replace_all_uses_with(y)
    for node in reversed(chain):
        plan.graph.erase_node(node)
    inside = set(chain[:-1])
    plan.places = {name: y if node is last else node for name, node in plan.places.items() if node not in inside}
    if plan.features is last:
        plan.features = y
    plan.norms.append(path)
    plan.moments.append(moments)


def _match(
    norm: fx.Node, modules: patterns.Modules
) -> tuple[list[fx.Node], fx.Node | None, patterns.Activation | None, str]:
    """The longest chain bn [-> add] [-> act] that nobody else reads; its residual and activation, or why not."""
    if len(norm.users) != 1:
        return [norm], None, None, f"{len(norm.users)} operators read its output"
    user = next(iter(norm.users))
    act = patterns.activation(user, modules)
    if act is not None:
        return [norm, user], None, act, ""
    residual = patterns.other_summand(user, norm, modules)
    if residual is None:
        consumer = user.target if user.op == "call_module" else user.name
        return [norm], None, None, f"{consumer} reads its output"
    after = next(iter(user.users)) if len(user.users) == 1 else None
    act = None if after is None else patterns.activation(after, modules)
    if after is None or act is None:
        return [norm, user], residual, None, ""
    return [norm, user, after], residual, act, ""


def drop_moments(graph: fx.Graph, moments: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Turn one call that gives (y, moments) into one that gives y; returns the call, and y's node, which is gone."""
    pair = moments.args[0]
    assert isinstance(pair, fx.Node)
    graph.erase_node(moments)
    (y,) = pair.users
    y.replace_all_uses_with(pair)
    graph.erase_node(y)
    pair.kwargs = {**pair.kwargs, "moments": False}
    return pair, y
