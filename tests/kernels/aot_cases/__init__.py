"""Specialisations of the Triton kernels that must compile for every supported GPU: a module for each operator.

`cases()` of a module are those that recipes launch, whose registers are measured; `corners()` those where an integer
argument is 1 or a flag is rare, which only have to compile.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple


class AotCase(NamedTuple):
    """One specialisation of a Triton kernel."""

    name: str
    kernel: Any
    args: tuple[Any, ...]
    """what a launch passes, a pointer given as its torch.dtype"""
    options: dict[str, Any]
    """constexpr arguments, num_warps and so on"""


def find(kind: Literal["cases", "corners"]) -> Iterator[AotCase]:
    """All cases of that kind, of all operators."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        yield from getattr(importlib.import_module(module.name), kind)()
