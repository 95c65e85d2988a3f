"""A CUDA graph for CPUs: what a step computes, written down as operators on the very tensors that it used.

A replay repeats the operators and none of the Python around them, and puts each result where the recorded step had it.
So it shows the same mistakes that a graph would: an input that is rebound and not copied, a Python number that changes,
a tensor that is made anew between two steps, a branch that would go the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dfkd_fast.methods.base import LossTerms


class Tape:
    """A `training.steps.Recorder`."""

    def __init__(self) -> None:
        self.recorded = 0

    def warm_up(self, step: Callable[[], LossTerms]) -> LossTerms:
        return step()

    def record(self, step: Callable[[], LossTerms]) -> tuple[Callable[[], None], LossTerms]:
        self.recorded += 1
        writer = _Writer()
        with writer:
            terms = step()
        return writer.replay, terms


class _Writer(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Mapping[str, Any], list[tuple[Tensor, bool]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        fresh = [leaf.untyped_storage()._cdata not in given for leaf in made]
        if func._schema.is_mutable or not made or any(fresh):  # else a view, which needs no repeating
            self.calls.append((func, args, kwargs, list(zip(made, fresh, strict=True))))
        return results

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, own in self.calls:
            results = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for (place, is_fresh), value in zip(own, results, strict=True):
                if is_fresh:
                    place.copy_(value)
