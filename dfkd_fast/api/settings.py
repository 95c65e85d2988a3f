"""Keyword arguments as the settings that they are on the command line: one parser checks both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dfkd_fast.catalog import METHODS
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Method
from dfkd_fast.methods.registry import register_method
from dfkd_fast.models.given import give


def flags_of(settings: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """Settings by their names as flags: `epochs=3` is `--epochs 3`, `eval={"every": 0}` is `--eval.every 0`. None is
    not given, True and False are a switch's two forms, and a tuple or list gives several values.

    Raises UserError for a value of any other kind.
    """
    for key, value in settings.items():
        name = key.replace("_", "-")
        flag = f"--{section}{name}"
        if isinstance(value, Mapping):
            yield from flags_of(value, f"{section}{name}.")
        elif isinstance(value, bool):
            yield flag if value else f"--{section}no-{name}"
        elif isinstance(value, tuple | list):
            yield from (flag, *map(str, value))
        elif isinstance(value, str | int | float | Path):
            yield f"{flag}={value}"
        elif value is not None:
            raise UserError(f"{key}: is a {type(value).__name__}; give a number, text, a path, or several of them")


def spec_of(network: nn.Module | str | Path) -> str:
    """What a config calls a network: its name, or what stands for a module that is given."""
    return give(network) if isinstance(network, nn.Module) else str(network)


def method_name(method: str | type[Method]) -> str:
    """The name of a method; a class that has none yet is registered by its own in small letters."""
    if isinstance(method, str):
        return method
    place = f"{method.__module__}:{method.__name__}"
    known = [name for name, where in METHODS.items() if where == place]
    if not known:
        register_method(method.__name__.lower(), method)
    return known[0] if known else method.__name__.lower()
