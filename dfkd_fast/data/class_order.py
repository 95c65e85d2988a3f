"""A network's own order of classes, if it differs from the sorted names of the data's folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfkd_fast.errors import UserError

NATURAL = "natural"


@dataclass(frozen=True)
class ClassOrder:
    """What `--class-order` states."""

    names: tuple[str, ...] | None
    """class folders in the order of the network's outputs; None for `natural`"""
    flag: str
    """as the user wrote it"""

    def of(self, found: Sequence[str], source: str) -> tuple[str, ...]:
        """The classes `found` in that order. Raises UserError where they are not those that it lists."""
        if self.names is None:
            return natural(found)
        odd = sorted(set(found) ^ set(self.names))
        if odd:
            shown = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
            raise UserError(f"{self.flag}: other classes than those of {source}; not in both: {shown}")
        return self.names


def stated_order(setting: str | None, *, flag: str = "--class-order") -> ClassOrder | None:
    """What the flag says: `natural`, or a file with one class folder a line; None where it is not given.

    Raises UserError for a file that cannot be read, holds no two names, or one twice.
    """
    if setting is None:
        return None
    written = f"{flag} {setting}"
    if setting == NATURAL:
        return ClassOrder(None, written)
    try:
        lines = Path(setting).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or "no text").lower()
        raise UserError(f"{written}: {reason}; choose {NATURAL} or a file with one class a line") from None
    names = tuple(line.strip() for line in lines if line.strip())
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UserError(f"{written}: names {twice} twice")
    if len(names) < 2:
        raise UserError(f"{written}: holds {len(names)} names; expected one class a line")
    return ClassOrder(names, written)


def natural(names: Sequence[str]) -> tuple[str, ...]:
    """Names sorted as people count: 2 before 10, class9 before class10."""

    def key(name: str) -> list[tuple[int, int | str]]:
        parts = re.split(r"([0-9]+)", name)
        return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part] + [(1, name)]

    return tuple(sorted(names, key=key))


def number_hint(names: Sequence[str], source: str) -> str | None:
    """A line for classes that are all numbers and stand otherwise as text than as numbers; None for others."""
    if not all(re.fullmatch(r"[0-9]+", name) for name in names) or natural(names) == tuple(names):
        return None
    shown = ", ".join(names[:5])
    return (
        f"{source}: its classes are numbers, taken as text ({shown}, ...); "
        "a network that counts them needs --class-order natural"
    )
