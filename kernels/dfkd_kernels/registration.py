"""An operator of torch.library that eager code calls directly.

torch.compile, fake tensors and dispatch modes need the operator's schema; eager code needs none of it and would pay the
dispatcher at each call. `Operator` gives each what it needs. The operators carry no autograd formula: each `ops.py`
wraps them in an autograd.Function, which torch.compile traces too.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from .backend import NAMESPACE, native_ops

_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def is_eager() -> bool:
    """Whether tensors hold values now: no compilation, no dispatch mode such as FakeTensorMode."""
    return not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0


class Operator:
    """Defines `schema` in this package's namespace; `launch` runs it, `fake` describes its outputs.

    Args:
        schema: "name(Tensor x, ...) -> Tensor"; arguments that are written to are marked `(a!)`.
        launch: the function that runs it; it gets the schema's arguments by position.
        fake: the same signature; returns empty tensors like the results.
        device_argument: position of the tensor, or list of them, whose device runs the operator.
    """

    def __init__(
        self, schema: str, launch: Callable[..., Any], fake: Callable[..., Any], *, device_argument: int = 0
    ) -> None:
        name = schema.partition("(")[0]
        self._launch = launch
        self._device_argument = device_argument
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for key in ("CPU", "CUDA"):
            _LIBRARY.impl(name, self._run, key)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
        self.overload = getattr(getattr(torch.ops, NAMESPACE), name).default

    def __call__(self, *args: Any) -> Any:
        return self._run(*args) if is_eager() else self.overload(*args)

    def _run(self, *args: Any) -> Any:
        first = args[self._device_argument]
        device = (first if isinstance(first, torch.Tensor) else first[0]).device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # Triton launches on the current device, whatever the tensors say
                return self._launch(*args)
        return self._launch(*args)


def launcher(module: str, function: str, *, native: str, result: int | None = None) -> Callable[..., Any]:
    """A `launch` for operators whose last argument names the backend: "triton" or "native".

    Args:
        module, function: where the Triton launcher is; the module, and with it Triton, is imported when first used.
        native: the C++ operator's name.
        result: which of the C++ operator's results is this one's, where it gives more; None: all.
    """

    @functools.cache
    def form(backend: str) -> Callable[..., Any]:
        if backend == "native":
            whole = getattr(native_ops(), native)
            return whole if result is None else lambda *args: whole(*args)[result]
        return getattr(importlib.import_module(module), function)

    def launch(*args: Any) -> Any:
        return form(args[-1])(*args[:-1])

    return launch


def once_differentiable(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Make an autograd.Function's backward raise under create_graph=True.

    torch's own decorator raises only if the incoming gradient depends on something. That of a plain sum does not, and a
    gradient penalty would silently get no gradient.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("create_graph=True: the fast forms have no second derivative, use('reference') has")
        return backward(ctx, *grads)

    return wrapper
