"""Tensors that have shapes and no values: a step of any size runs on them in seconds, on any machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """FakeTensorMode, with what it lacks for modules and their copies. Tensors of before do not go in."""
    with (
        FakeTensorMode(allow_non_fake_inputs=False),
        patch.object(nn.Module, "_apply", apply_in_place),
        patch.object(Tensor, "__deepcopy__", deepcopy_of),
    ):
        yield


def apply_in_place(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` as for tensors with values: a Parameter stays itself. For fake tensors torch would swap it."""
    for module in self.children() if recurse else ():
        module._apply(fn)
    for parameter in self._parameters.values():
        if parameter is not None:
            with torch.no_grad():
                moved = fn(parameter)
            if moved is not parameter:
                parameter.data = moved
                if isinstance(parameter, FakeTensor):
                    parameter.fake_device = moved.device
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def deepcopy_of(self: Tensor, memo: dict[int, Any]) -> Tensor:
    """A copy; torch's own copies the storage, and fake tensors have none."""
    if id(self) not in memo:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
    return memo[id(self)]
