"""The form of last resort for networks that torch.fx cannot trace: layers in place, each recording what it saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..bn_act_moments.reference import Moments
from .answers import logits_of
from .norms import StatBatchNorm2d, WatchedBatchNorm
from .rewrite import INPUT

_POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d)


class Log:
    """What one forward pass hands out beside its logits."""

    def __init__(self) -> None:
        self.want_moments = True
        self.norms: list[RecordingNorm] = []
        self.moments: list[Moments] = []
        self.features: Tensor | None = None
        self.maps: dict[str, Tensor] = {}

    def clear(self, want_moments: bool) -> None:
        """Forget the last pass: a log that kept tensors would keep their graph alive."""
        self.want_moments = want_moments
        self.norms, self.moments, self.features, self.maps = [], [], None, {}


class RecordingNorm(nn.Module):
    """A BatchNorm in its place in the network: returns y, logs its moments."""

    def __init__(self, norm: StatBatchNorm2d | WatchedBatchNorm, name: str, log: Log) -> None:
        super().__init__()
        self.norm, self.name, self.log = norm, name, log

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> bn(x)."""
        if not self.log.want_moments:
            y: Tensor = self.norm(x, moments=False)
            return y
        y, moments = self.norm(x)
        self.log.norms.append(self)
        self.log.moments.append(moments)
        return y


class RecordingPool(nn.Module):
    """A global pooling: logs its input as the features."""

    def __init__(self, pool: nn.Module, log: Log) -> None:
        super().__init__()
        self.pool, self.log = pool, log

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> pool(x)."""
        self.log.features = x
        y: Tensor = self.pool(x)
        return y


class RecordingStage(nn.Module):
    """Any module: logs its input and its output under its name."""

    def __init__(self, stage: nn.Module, name: str, log: Log) -> None:
        super().__init__()
        self.stage, self.name, self.log = stage, name, log

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The stage's own output."""
        out = self.stage(*args, **kwargs)
        self.log.maps[self.name] = out
        if args:
            self.log.maps[self.name + INPUT] = args[0]
        return out


class SwappedNetwork(nn.Module):
    """A network of recording layers that answers as a traced one does: (logits, features, moments[, maps])."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.log = Log()
        self.model = model
        self._homes = {name: _home(model, name) for name, _ in model.named_modules() if name}
        self._watched: set[str] = set()
        recordings: dict[nn.Module, nn.Module] = {}
        for name, module in model.named_modules():
            if isinstance(module, StatBatchNorm2d | WatchedBatchNorm):
                recordings[module] = RecordingNorm(module, name, self.log)
            elif isinstance(module, _POOLS):
                recordings[module] = RecordingPool(module, self.log)
        replace_modules(model, recordings)

    def norms(self) -> list[RecordingNorm]:
        """The layers whose moments the last pass gave, in its order; before any pass, all of them as registered."""
        return self.log.norms or [module for module in self.modules() if isinstance(module, RecordingNorm)]

    def watch(self, maps: Sequence[str]) -> None:
        """Make the named modules record their inputs and outputs."""
        for name in (path.removesuffix(INPUT) for path in maps):
            if name not in self._homes:
                raise ValueError(f"maps {name!r}: no such module; choose from {', '.join(self._homes)}")
            if name not in self._watched:
                parent, attribute = self._homes[name]
                setattr(parent, attribute, RecordingStage(getattr(parent, attribute), name, self.log))
                self._watched.add(name)

    def forward(self, x: Tensor, maps: Sequence[str] = (), moments: bool = True) -> tuple[Any, ...]:
        """x (B, C, H, W) -> (logits, features, moments) and, if maps are asked for, a dict of them."""
        self.log.clear(moments)
        logits, _ = logits_of(self.model(x))
        out = (logits, self.log.features, self.log.moments)
        named = {name: self.log.maps[name] for name in maps}
        self.log.moments, self.log.features, self.log.maps = [], None, {}
        return (*out, named) if maps else out


def replace_modules(model: nn.Module, twins: Mapping[nn.Module, nn.Module]) -> None:
    """Put each module's twin in its place, under all the names that the module has."""
    for parent in list(model.modules()):
        for attribute, child in parent._modules.items():
            if child is not None and child in twins:
                setattr(parent, attribute, twins[child])


def _home(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, attribute = name.rpartition(".")
    return model.get_submodule(parent), attribute
