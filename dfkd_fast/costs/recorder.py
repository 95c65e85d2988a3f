"""A dispatch mode that writes down which kernels are asked for, by the part of a run that asks, and the peak of memory.

Below it tensors may have values or none (`without_values`). What reads a value where there is none gets a 1.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd_fast.costs.kernels import Kernel, kernels_of
from dfkd_fast.costs.launches import is_launch, memory_of, tensors_in

_NO_FAKE = ("aten::_fused_adam", "aten::_fused_sgd")
"""in place, and without a form for tensors that have no values where the learning rate is one"""


@dataclass
class Part:
    """What one part of a run asks for: a step, or what a round does beside its steps."""

    kernels: list[Kernel] = field(default_factory=list)
    calls: int = 0
    """operators that the host dispatches, those that launch nothing (views) among them"""
    waits: int = 0
    """times that the host reads a value of the device"""

    @property
    def flops(self) -> float:
        """Of convolutions and matrix products, as they are computed."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def launches(self) -> int:
        """Kernels that a device is given."""
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def bytes(self) -> int:
        """Read and written, each tensor of a call once."""
        return sum(kernel.bytes for kernel in self.kernels)


class Recorder(TorchDispatchMode):
    """Records into the part that `into` names; outside of it only memory is watched."""

    def __init__(self) -> None:
        super().__init__()
        self._part: Part | None = None
        self.live_bytes = self.peak_bytes = 0
        """of all tensors that were made below this mode, and the most that they ever were"""
        self._known: set[int] = set()

    @contextlib.contextmanager
    def into(self, part: Part | None) -> Iterator[None]:
        """Record the block's kernels into `part`, or nowhere."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        given = tensors_in([args, *kwargs.values()])
        fake = any(isinstance(tensor, FakeTensor) for tensor in given)
        if name == "aten::_local_scalar_dense" and fake:
            if self._part is not None:
                self._part.waits += 1
            dtype = given[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        for tensor in given if fake else ():
            tensor.constant = None  # type: ignore[attr-defined]
        if name == "aten::repeat_interleave" and fake:  # of repeats without values: as of ones
            return given[0]
        results = None if fake and name.startswith(_NO_FAKE) else func(*args, **kwargs)
        made = tensors_in([results])
        before = {memory_of(tensor) for tensor in given}
        fresh = [tensor for tensor in made if memory_of(tensor) not in before]
        self._hold(fresh)
        if self._part is not None:
            self._part.calls += 1
            if is_launch(name, func._schema, made, fresh):
                self._part.kernels += kernels_of(name, args, given, made)
        return results

    def _hold(self, fresh: Sequence[Tensor]) -> None:
        for tensor in fresh:
            storage, place = tensor.untyped_storage(), memory_of(tensor)
            if place in self._known:
                continue
            self._known.add(place)
            self.live_bytes += storage.nbytes()
            weakref.finalize(storage, self._freed, place, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _freed(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.live_bytes -= size
