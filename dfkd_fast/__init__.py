"""dfkd-fast: data-free knowledge distillation at the hardware's speed.

The names below are the Python interface (docs/api.md). Each is imported when it is first asked for, so that
`import dfkd_fast` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfkd_fast.api.networks import load_student as load_student

__version__ = "0.1.0"

_HOME = {"load_student": "dfkd_fast.api.networks"}
"""name -> the module that has it"""
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
