"""`setting`: a dataclass field with the limits of its value, and its value in runs from before the field existed.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_MOST = 10**9
"""of a whole number that states no other: far above what anybody computes, so that a typo fails at once"""
_AS_EVER = object()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is stated of a setting beside its default."""

    at_least: float | None = None
    """the least value"""
    above: float | None = None
    """what the value must be above"""
    at_most: float | None = None
    """the greatest value"""
    any_number: bool = False
    """any finite number is allowed: a factor, a sign"""
    shared_out: bool = False
    """a count of images, of which each process of a run has its share"""
    synthesis_rate: bool = False
    """a learning rate of synthesis: what to lower where it diverges"""
    formerly: Any = _AS_EVER
    """the value of runs that are older than the setting: with it the setting is left out of a config's hash"""
    alone: str | None = None
    """the value of a flag that is written without one"""
    hashed_as: str = ""
    """the field's name in older runs, if it had another: by it a config's hash and checkpoints know it for good"""

    def broken_by(self, value: float) -> str:
        """The limit that a number breaks, as what to choose instead; "" for one that is allowed."""
        if not math.isfinite(value):
            return "a finite number"
        if self.at_least is not None and value < self.at_least:
            return f"{self.at_least:g} or more"
        if self.above is not None and value <= self.above:
            return f"more than {self.above:g}"
        most = _MOST if self.at_most is None and isinstance(value, int) else self.at_most
        if most is not None and value > most:
            return f"{most} or less"
        return ""


def setting(default: T, **stated: Any) -> T:
    """A field of a config with this default, of which `Setting(**stated)` holds. Of a tuple each number has its limits.

    A subclass that gives the field another default keeps what was stated.
    """
    made: T = field(default=default, metadata={"setting": Setting(**stated)})
    return made


def stated_of(config_class: type, name: str) -> Setting:
    """What the class, or the nearest above it that states anything, says of a field."""
    for cls in config_class.__mro__:
        found = vars(cls).get("__dataclass_fields__", {}).get(name)
        if found is not None and "setting" in found.metadata:
            stated: Setting = found.metadata["setting"]
            return stated
    return Setting()


def former_keys(config: Any) -> dict[str, str]:
    """Dotted key of each setting that had another name -> the key that older runs know it by."""
    renamed = ((key, stated.hashed_as) for key, _, stated in settings_of(config) if stated.hashed_as)
    return {key: f"{key.rpartition('.')[0]}.{name}".lstrip(".") for key, name in renamed}


def former_flags(config: Any) -> dict[str, str]:
    """The same as flags: what such a setting was called -> what it is called now."""
    return {f"--{old.replace('_', '-')}": f"--{key.replace('_', '-')}" for key, old in former_keys(config).items()}


def settings_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Setting]]:
    """Every setting of a config: dotted key (`method.bn_weight` for one in a section), value, and what is stated."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from settings_of(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value, stated_of(type(config), item.name)
