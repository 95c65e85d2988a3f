"""What stands for the objects that training scripts put beside the weights, so that nothing of them runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

_NUMBERS = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} - {"f1"}


class Shell:
    """Stands for a harmless object that no one needs: takes everything, keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Shell:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class Kind(Shell):
    """Stands for a numpy dtype: keeps what it is called, `f8`, and in which order its bytes are."""

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.name = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        self.order: Literal["<", ">", "="] = "="

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


def number(kind: object = None, content: object = b"") -> float | Shell:
    """A numpy scalar's value, of a plain number; else a shell, which stands for it."""
    if isinstance(kind, Kind) and kind.name in _NUMBERS and isinstance(content, bytes):
        plain = np.dtype(kind.name).newbyteorder(kind.order)
        if len(content) == plain.itemsize:
            return float(np.frombuffer(content, plain)[0])
    return Shell()


_CORES = ("core", "_core")
SHELLS: tuple[tuple[Callable[..., Any], str], ...] = (
    *((Shell, name) for name in ("argparse.Namespace", "types.SimpleNamespace", "numpy.ndarray")),
    (Kind, "numpy.dtype"),
    *((number, f"numpy.{core}.multiarray.scalar") for core in _CORES),
    *((Shell, f"numpy.{core}.multiarray._reconstruct") for core in _CORES),
    *((Shell, f"pathlib.{name}") for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
    *((Shell, f"pathlib._local.{name}") for name in ("PosixPath", "WindowsPath")),
)
"""what stands for which class, for torch's unpickler of tensors alone"""
