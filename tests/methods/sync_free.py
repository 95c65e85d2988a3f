"""A mode in which code that waits for the device fails, on any device: in a step, tensors may only meet tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Reads a tensor's value into Python. On a CPU some of it reaches no operator, so it is caught where it is called.
_READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__", "__format__")
# Copies Python numbers to the device, and waits for that.
_COPIES = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
# Operators whose result's shape or whose success depends on values, so that the device is asked for them.
_VALUES = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::equal",
    "aten::bincount",
    "aten::repeat_interleave",
}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class HostReadError(AssertionError):
    """Code asked the device for a value, or made it wait for one."""


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READS and func is getattr(Tensor, name, None):
            raise HostReadError(f"Tensor.{name}")
        if func in _COPIES and not isinstance(args[func is Tensor.new_tensor], Tensor):
            raise HostReadError(f"{name} of Python numbers")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        name = func._schema.name
        if name in _VALUES:
            raise HostReadError(name)
        if name in _INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1]):
            raise HostReadError(f"{name} with a mask")
        return func(*args, **(kwargs or {}))


@contextmanager
def sync_free() -> Iterator[None]:
    """Raise HostReadError where the block reads a value, needs one to go on, or makes a tensor of Python numbers."""
    with _Operators(), _Calls():
        yield
