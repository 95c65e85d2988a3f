"""A network in training that hands out its features and stage maps as values: no hooks, one graph with its logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.errors import UserError
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.models.vit import TokenWindow, check_size, head_weights, is_vit, see
from dfkd_kernels.freeze.patterns import find_classifier, find_features
from dfkd_kernels.freeze.rewrite import INPUT
from dfkd_kernels.fuse.fuse import fuse_graph


class FeatureExtractor(nn.Module):
    """A network that answers with a `NetOutput`: logits, the last feature map and the stage maps that were asked for.

    It runs the given network itself, rewritten by torch.fx: parameters, buffers and mode are the network's own, and
    gradients flow through everything that is handed out. Frozen networks have `FrozenNet`; this is for the student.

    `maps` are module paths (`layer1`), or `layer1:input` for what a module reads. Trace a network in the mode it will
    run in: dropout as a function keeps it.
    A vision transformer is not rewritten but run by `models.vit.see`, on images of its size or smaller; `window` is its
    teacher's, which it looks through too.
    Raises UserError, naming `flag`, where torch.fx cannot trace the network, or it has no feature map or such a module.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        maps: Sequence[str] = (),
        name: str = "",
        flag: str = "--student",
        window: TokenWindow | None = None,
    ) -> None:
        super().__init__()
        self.model, self.maps = model, tuple(maps)
        self._called = f"{flag} {name or type(model).__name__}"
        self._window = None
        if is_vit(model):
            if maps:
                raise UserError(f"{self._called}: has patch tokens and no maps of stages; choose another network")
            self._window = window or TokenWindow(next(model.parameters()).device)
            return
        self._run, self._classifier = _rewrite(model, self.maps, self._called)

    def forward(self, view: Tensor) -> NetOutput:
        """Normalised images (B, C, H, W) -> logits (B, K), features (B, D, h, w), maps."""
        if self._window is not None:
            tokens = see(self.model, view, self._window, draws=not self._window.is_led)
            return NetOutput(tokens.logits, tokens.features, embedding=tokens.embedding)
        logits, features, found = self._run(self.model, view)
        return NetOutput(logits, features, found)

    @property
    def class_weights(self) -> Tensor:
        """The classifier's weight (K, D) as it is now, without a graph: what class activation maps are made of.

        Raises UserError where the classifier is anything but one Linear on the pooled features.
        """
        if self._window is not None:
            weight = head_weights(self.model)
        else:
            layer = self.model.get_submodule(self._classifier) if self._classifier else None
            weight = getattr(layer, "weight", None)
        if weight is None:
            raise UserError(
                f"{self._called}: its classifier is not one linear layer on pooled features, which class activation "
                "maps need; choose another network"
            )
        return weight.detach()

    def check_size(self, image_size: ImageSize, flag: str) -> None:
        """Raise UserError, naming `flag`, where the network cannot see images of this size."""
        if self._window is not None:
            check_size(self.model, image_size, f"{flag} {image_size.flag}: {self._called}")

    def width(self, info: ModelInfo) -> int:
        """Channels of the feature map, for images of `info`'s size. The network must be in evaluation mode."""
        with torch.no_grad():
            features = self(info.blank(next(self.parameters()))).features
        return features.shape[1]


class _Tracer(fx.Tracer):
    """Traces into blocks but not into layers, and remembers what each module reads and gives."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, nn.modules.batchnorm._BatchNorm)  # also our own, of a batch over several ranks
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        if isinstance(out, fx.Proxy):
            self.places[self.path_of_module(m)] = out.node
        if args and isinstance(args[0], fx.Proxy):
            self.places[self.path_of_module(m) + INPUT] = args[0].node
        return out


def _rewrite(model: nn.Module, maps: tuple[str, ...], name: str) -> tuple[Callable[..., Any], str | None]:
    """The network's forward as `run(model, view) -> (logits, features, maps)`, and the path of its linear classifier,
    if it has one.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # torch.fx runs the network's own Python: anything may come out of it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}: torch.fx cannot trace it, and its features are needed ({reason}); choose another network"
        ) from error
    output = next(node for node in graph.nodes if node.op == "output")
    logits = output.args[0]
    modules = dict(model.named_modules())
    features = find_features(logits, modules) if isinstance(logits, fx.Node) else None
    if features is None:
        raise UserError(f"{name}: has no feature map that is pooled into its logits; choose another network")
    unknown = [path for path in maps if path not in tracer.places]
    if unknown:
        blocks = ", ".join(path for path in tracer.places if not {".", ":"} & set(path))
        raise UserError(f"{name}: has no module {unknown[0]} with one output; choose from {blocks}")
    classifier = find_classifier(logits, features, modules)
    output.args = ((logits, features, {path: tracer.places[path] for path in maps}),)
    fuse_graph(graph, modules)
    return type(fx.GraphModule(model, graph)).forward, classifier
