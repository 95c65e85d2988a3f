"""dfkd-fast: data-free knowledge distillation at the hardware's speed.

The names below are the Python interface (docs/api.md). Each is imported when it is first asked for, so that
`import dfkd_fast` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfkd_fast.api.distillation import Result as Result
    from dfkd_fast.api.distillation import distill as distill
    from dfkd_fast.api.images import SyntheticImages as SyntheticImages
    from dfkd_fast.api.images import synthesize as synthesize
    from dfkd_fast.api.networks import evaluate as evaluate
    from dfkd_fast.api.networks import export as export
    from dfkd_fast.api.networks import load_student as load_student
    from dfkd_fast.errors import UserError as UserError
    from dfkd_fast.methods.base import Method as Method
    from dfkd_fast.methods.registry import register_method as register_method

__version__ = "0.1.0"

_HOME = {
    "distill": "dfkd_fast.api.distillation",
    "Result": "dfkd_fast.api.distillation",
    "load_student": "dfkd_fast.api.networks",
    "evaluate": "dfkd_fast.api.networks",
    "export": "dfkd_fast.api.networks",
    "synthesize": "dfkd_fast.api.images",
    "SyntheticImages": "dfkd_fast.api.images",
    "Method": "dfkd_fast.methods.base",
    "register_method": "dfkd_fast.methods.registry",
    "UserError": "dfkd_fast.errors",
}
"""name -> the module that has it"""
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
