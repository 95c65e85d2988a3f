"""Rounds of a method outside a run: one at a time, or up to its first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._pytree import tree_map

from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import Method, SynthBatch
from dfkd_fast.methods.inner import Inner, LrScale, Variant, inners
from dfkd_fast.training.inner import InnerLoop, OnStep, bind, ignore, watched


class Rounds:
    """A method's rounds, driven as a run drives them."""

    def __init__(self, method: Method, runtime: Runtime) -> None:
        self.method, self.engines = method, bind(method, runtime)
        self._batches: Iterator[SynthBatch] = iter(())

    @property
    def engine(self) -> InnerLoop:
        """The only one."""
        (engine,) = self.engines
        return engine

    def round(self, epoch: int, index: int = 0, on_step: OnStep = ignore) -> SynthBatch:
        """Round `index` (0-based) of an epoch, which follows round `index - 1`."""
        if index == 0:
            self._batches = iter(self.method.synthesize(epoch))
        with watched(self.engines, on_step):
            made = next(self._batches)
        for engine in self.engines:
            engine.taken(epoch)
        return made


class _BegunError(Exception):
    """The step that is waited for is next."""


class _UpTo:
    """An engine that stops in front of the first step of a round; of those before it one step each is looked at."""

    def __init__(self, inner: Inner, wanted: list[int], found: dict[str, Any]) -> None:
        self.inner, self.wanted, self.found = inner, wanted, found
        inner.engine = self

    def run(self, steps: int, lr_scale: LrScale, variant: Variant) -> Any:
        if self.wanted[0] == 0:
            self.found.update(variant)
            raise _BegunError
        return tree_map(torch.detach, self.inner.step(**variant)[0])

    def inference(self) -> AbstractContextManager[Any]:
        return torch.no_grad()


def begin_round(method: Method, epoch: int, index: int = 0) -> dict[str, Any]:
    """Do what an epoch does before the first step of a round; returns the keyword arguments of that step."""
    found: dict[str, Any] = {}
    wanted = [index]
    for inner in inners(method):
        inner.optimizers()  # a method may only now say what asks for gradients
        _UpTo(inner, wanted, found)
    batches = iter(method.synthesize(epoch))
    try:
        while True:
            next(batches)
            wanted[0] -= 1
    except _BegunError:
        return found
