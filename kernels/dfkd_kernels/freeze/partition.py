"""Partition a rewritten graph: frozen layers that follow one another become one call of a `Segment`."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from torch import fx

from . import gates, patterns
from .convolution import FrozenConv2d
from .norms import StatBatchNorm2d
from .segment import Segment
from .steps import Convolution, Gate, Norm, Step, Sum

LEAST = 2
"""layers of a segment that is worth a call of its own"""

_IN_PLACE = {operator.iadd, "add_"}
"""sums that change what other readers of the first term see"""


def join_layers(graph: fx.Graph, modules: patterns.Modules) -> fx.Graph:
    """A graph that computes the same, with as few segments as its order allows.

    Layers are of one segment where no path between them leaves it: a layer's level is that of the layers it reads, and
    one more than that of anything else that reads layers, or of a layer whose map is handed out: gradients of the
    logits are taken with respect to it, so that it must lie between two segments.
    """
    layers = _Layers(graph, modules)
    handed_out = {each for node in graph.nodes if node.op == "output" for each in node.all_input_nodes}
    levels: dict[fx.Node, int] = {}
    segments: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        outside = layers.inside if node in layers.calls else levels.keys()
        behind = {each: levels[each] + (each not in outside or each in handed_out) for each in layers.sources(node)}
        levels[node] = max(behind.values(), default=0)
        if node in layers.inside:
            segments.setdefault(levels[node], []).append(node)
    kept = [nodes for nodes in segments.values() if len(layers.calls.intersection(nodes)) >= LEAST]
    return _Emitter(kept, layers).emit(graph)


class _Layers:
    """Which nodes a segment can run."""

    def __init__(self, graph: fx.Graph, modules: patterns.Modules) -> None:
        self.modules = modules
        self.calls: set[fx.Node] = set()
        """convolutions, BatchNorms, sums of what is inside, gates"""
        self.inside: set[fx.Node] = set()
        """those, and of a BatchNorm's results y and moments"""
        self.gates: dict[fx.Node, gates.Found] = {}
        for node in graph.nodes:
            gate = gates.find(node, modules)
            if gate is not None:
                self.gates[node] = gate
            if gate is not None or self._is_layer(node) or self._is_sum(node):
                self.calls.add(node)
            if node in self.calls or self._is_result(node):
                self.inside.add(node)
        self.hidden = {each for gate in self.gates.values() for each in gate.hidden}
        """what gates run themselves"""
        self.calls -= self.hidden
        self.inside -= self.hidden

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """What a node reads, a BatchNorm's residual last."""
        if node in self.gates:
            return [self.gates[node].y]
        residual = node.kwargs.get("residual")
        first = node.args[:1] if residual is not None else ()
        return [*first, residual] if first else node.all_input_nodes  # type: ignore[list-item]

    def step(self, node: fx.Node, sources: list[int]) -> Step:
        """That of a call."""
        if node in self.gates:
            gate = self.gates[node]
            return Gate(sources, gate.squeeze, gate.excite, act=gate.act, gate=gate.code)
        if node.op != "call_module":
            return Sum(sources)
        layer = self.modules[str(node.target)]
        if isinstance(layer, FrozenConv2d):
            return Convolution(sources, layer)
        assert isinstance(layer, StatBatchNorm2d)
        options = {name: value for name, value in node.kwargs.items() if name != "residual"}
        return Norm(sources, layer, **options)  # type: ignore[arg-type]

    def _is_layer(self, node: fx.Node) -> bool:
        return patterns.kind(node, self.modules) in (FrozenConv2d, StatBatchNorm2d)

    def _is_sum(self, node: fx.Node) -> bool:
        terms = node.all_input_nodes
        return (
            len(terms) == 2
            and patterns.other_summand(node, terms[0], self.modules) is terms[1]
            and self.inside.issuperset(terms)
            and (node.target not in _IN_PLACE or len(terms[0].users) == 1)
        )

    def _is_result(self, node: fx.Node) -> bool:
        source = node.args[0] if node.args else None
        return (
            node.target is operator.getitem
            and isinstance(source, fx.Node)
            and patterns.kind(source, self.modules) is StatBatchNorm2d
            and source.kwargs.get("moments", True) is True
        )


class _Emitter:
    """Copies a graph, each segment at once, when something reads it."""

    def __init__(self, segments: Iterable[list[fx.Node]], layers: _Layers) -> None:
        self.of = {node: nodes for nodes in segments for node in nodes}
        self.layers = layers
        self.graph = fx.Graph()
        self.twins: dict[fx.Node, fx.Node] = {}

    def emit(self, graph: fx.Graph) -> fx.Graph:
        """The copy."""
        joined = {each for node in self.of if node in self.layers.gates for each in self.layers.gates[node].hidden}
        for node in graph.nodes:
            if node not in joined:
                self._copy(node)
        return self.graph

    def _copy(self, node: fx.Node) -> None:
        if node in self.twins:
            return
        if node in self.of:
            self._copy_segment(self.of[node])
            return
        for source in node.all_input_nodes:
            self._copy(source)
        self.twins[node] = self.graph.node_copy(node, self.twins.__getitem__)

    def _copy_segment(self, nodes: list[fx.Node]) -> None:
        layers, inside = self.layers, set(nodes)
        calls = [node for node in nodes if node in layers.calls]
        inputs = list(dict.fromkeys(each for node in calls for each in layers.sources(node) if each not in inside))
        for source in inputs:
            self._copy(source)
        numbers = {node: index for index, node in enumerate(inputs)}
        steps, outputs, moments = [], [], []
        for number, node in enumerate(calls, len(inputs)):
            steps.append(layers.step(node, [numbers[source] for source in layers.sources(node)]))
            results = {user.args[1]: user for user in node.users if steps[-1].moments}
            y = results.get(0, node)
            numbers[y] = number
            moments += [results[1]] if 1 in results else []
            outputs += [y] if any(user not in inside and user not in layers.hidden for user in y.users) else []
        segment = Segment(steps, len(inputs), [numbers[node] for node in outputs])
        called = self.graph.call_function(segment, tuple(self.twins[node] for node in inputs))
        self.twins |= dict.fromkeys(nodes, called)
        for index, node in enumerate([*outputs, *moments]):
            self.twins[node] = self.graph.call_function(operator.getitem, (called, index))
