"""Lets a process of several kill itself at a method: LOST_RANK is `RANK module Class.method`. Python imports this file
by itself where its folder is on PYTHONPATH.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _Finder(importlib.abc.MetaPathFinder):
    """Replaces the method when its module is imported."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.owner, self.method = module, *name.split(".")

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            setattr(getattr(module, self.owner), self.method, _die)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if "LOST_RANK" in os.environ and "RANK" in os.environ:
    _rank, _module, _name = os.environ["LOST_RANK"].split()
    if _rank == os.environ["RANK"]:
        sys.meta_path.insert(0, _Finder(_module, _name))
