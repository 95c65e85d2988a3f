"""Health of a network's BatchNorm statistics, by what is stored alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

DEAD = 1e-12
"""running variance of a channel that is constant"""


class Finding(NamedTuple):
    """What is said of a network."""

    level: Literal["fine", "note", "warning", "error"]
    text: str

    def __str__(self) -> str:
        return self.text if self.level == "fine" else f"{self.level}: {self.text}"


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers of a network by name, those without running statistics, too."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def check_statistics(model: nn.Module) -> Iterator[Finding]:
    """Findings on the running statistics: absent, not finite, never updated, dead channels, negative variances."""
    norms = norms_of(model)
    kept = {name: norm for name, norm in norms.items() if norm.running_mean is not None}
    if not norms:
        yield Finding("warning", "no BatchNorm layer: there are no statistics that images could be matched with")
        return
    if len(kept) < len(norms):
        bare = [name for name in norms if name not in kept]
        yield Finding("warning", f"{_listed(bare)} without running statistics (track_running_stats=False)")
    broken = [name for name, norm in kept.items() if not _is_finite(norm)]
    negative = [name for name, norm in kept.items() if name not in broken and bool((_variance(norm) < 0).any())]
    untrained = [name for name, norm in kept.items() if _is_untrained(norm)]
    if broken:
        yield Finding("error", f"{_listed(broken)} with statistics or weights that are not finite")
    if negative:
        yield Finding("error", f"{_listed(negative)} with a negative running variance")
    if untrained:
        level: Literal["warning", "error"] = "error" if len(untrained) == len(kept) else "warning"
        yield Finding(
            level, f"{_listed(untrained)} as initialised (mean 0, variance 1): never trained, or its buffers not saved"
        )
    dead = {name: int((_variance(norm) <= DEAD).sum()) for name, norm in kept.items() if name not in broken}
    dead = {name: count for name, count in dead.items() if count}
    if dead:
        channels = sum(len(_variance(kept[name])) for name in dead)
        yield Finding(
            "note", f"{sum(dead.values())} of {channels} channels of {_listed(list(dead))} are dead (variance 0)"
        )
    if not (broken or negative or untrained):
        channels = sum(len(_variance(norm)) for norm in kept.values())
        yield Finding("fine", f"{len(kept)} BatchNorm layers with {channels:,} channels, all trained and finite")


def _variance(norm: _BatchNorm) -> torch.Tensor:
    assert norm.running_var is not None
    return norm.running_var


def _is_finite(norm: _BatchNorm) -> bool:
    values = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return all(bool(torch.isfinite(value).all()) for value in values if value is not None)


def _is_untrained(norm: _BatchNorm) -> bool:
    assert norm.running_mean is not None
    return bool((norm.running_mean == 0).all()) and bool((_variance(norm) == 1).all())


def _listed(names: list[str]) -> str:
    """`layer1.bn1`, or `3 layers, layer1.bn1 the first`."""
    return f"layer {names[0]}" if len(names) == 1 else f"{len(names)} layers, {names[0]} the first,"
