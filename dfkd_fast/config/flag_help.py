"""Help pages of a command's flags: a line each, in groups, or with `--help-all` everything that is said of them.

Texts are the docstrings of the config dataclasses' fields. Imports no torch.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import docstring_parser

from dfkd_fast.messages.terminal import shown

WIDTH = 80
_NAME = 27
"""columns of a flag and its value"""
_DEFAULT = 24
"""characters of a value; of a longer one, a path, the end is shown"""
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: ""}


class Flag(NamedTuple):
    """A flag as help shows it."""

    name: str
    values: str
    """what is written behind it"""
    text: str
    default: str


Groups = Mapping[str, Sequence[str]]
"""title -> flags that stand below it"""

HELP = ("-h", "--help", "--help-all")


@dataclass(frozen=True, kw_only=True)
class HelpPage:
    """What a command's `--help` says."""

    usage: str = ""
    """how the command is written, and what it does"""
    about: str = ""
    """of the flags as a whole"""
    groups: Groups | None = None
    """what `--help` shows of them; without it all"""
    beside: Any = None
    """a config that other parts of the command line are parsed into, whose flags stand first"""

    def text(self, config: Any, *, short: str = "", everything: bool = False) -> str:
        """The page with the values of `config` as defaults; `everything` that is said, or a line for each flag. A flag
        of section `short` is written without its prefix.
        """
        parts = [part for part in (self.beside, config) if part is not None]
        found = {flag.name: flag for part in parts for flag in flags_of(part)}
        known = {_without(name, short, found): flag for name, flag in found.items()}
        head = f"{self.usage}\n"
        if everything:
            return "\n".join([head, *textwrap.wrap(self.about, WIDTH), *_sections(known)])
        lines, listed = [head], 0
        for title, names in (self.groups or {"flags": list(known)}).items():
            there = [name for name in names if name in known]
            listed += len(there)
            if there:
                lines += [f"{title}:", *(_short_line(name, known[name]) for name in there)]
        more = len(known) - listed
        return "\n".join([*lines, "", f"--help-all says more of these{f', and of {more} others' if more else ''}"])


def _sections(known: Mapping[str, Flag]) -> Iterator[str]:
    """Each flag with its whole text, values and default, section by section."""
    section = None
    for name, flag in known.items():
        head = flag.name[2:].rpartition(".")[0]
        if head != section:
            yield from ("", f"[{head}]" if head else "flags:")
            section = head
        text = flag.text + (f" (default: {flag.default})" if flag.default else "")
        yield f"  {_switch(name, flag)} {flag.values}".rstrip()
        yield from textwrap.wrap(text, WIDTH, initial_indent="      ", subsequent_indent="      ")


def flags_of(config: Any, prefix: str = "--") -> Iterator[Flag]:
    """Every flag of a config, sections last, with the values that it has in `config` as defaults."""
    hints, texts = get_type_hints(type(config)), field_texts(type(config))
    sections = [item for item in fields(config) if is_dataclass(getattr(config, item.name))]
    for item in fields(config):
        if item not in sections:
            value = getattr(config, item.name)
            name = f"{prefix}{item.name.replace('_', '-')}"
            yield Flag(name, values_of(hints[item.name]), texts.get(item.name, ""), _written(value))
    for item in sections:
        yield from flags_of(getattr(config, item.name), f"{prefix}{item.name.replace('_', '-')}.")


def field_texts(config_class: type) -> dict[str, str]:
    """Field -> its docstring as one line, of the class or of the nearest above it that has one."""
    texts: dict[str, str] = {}
    for cls in reversed(config_class.__mro__):
        if is_dataclass(cls) and inspect.getmodule(cls) is not None:
            for found in docstring_parser.parse_from_object(cls).params:
                texts[found.arg_name] = " ".join((found.description or "").split())
    return texts


def values_of(hint: Any) -> str:
    """How a flag's value is written: `N`, `X ...`, `{off,on}`, or nothing for a switch."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return "|".join(_value(option) for option in options if option is not NoneType)


def choices_of(hint: Any) -> tuple[str, ...]:
    """The words that a flag's value may be, where they can be listed."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(str(word) for option in options if get_origin(option) is Literal for word in get_args(option))


def _value(option: Any) -> str:
    if get_origin(option) is Literal:
        return "{" + ",".join(map(str, get_args(option))) + "}"
    items = get_args(option)
    if items:
        one = _METAVARS[items[0]]
        return f"{one} ..." if Ellipsis in items else " ".join(one for _ in items)
    return _METAVARS[option]


def _written(value: Any) -> str:
    if value is None or value is False or value in ("", ()):
        return ""
    if value is True:
        return "on"
    return shown(" ".join(map(str, value)) if isinstance(value, tuple) else value)


def _without(name: str, short: str, known: Iterable[str]) -> str:
    bare = f"--{name.removeprefix(f'--{short}.')}"
    return bare if short and name.startswith(f"--{short}.") and bare not in known else name


def _switch(name: str, flag: Flag) -> str:
    """A flag's name, with how it is turned off where it is on: `--log.[no-]plot`."""
    return re.sub(r"^(--|.*\.)", r"\1[no-]", name) if flag.default == "on" else name


def _short_line(name: str, flag: Flag) -> str:
    """A flag with the first clause of its text, and its default, in one line of `WIDTH` columns."""
    clause = re.split("[;:] ", re.sub(r"\s*\([^()]*\)", "", flag.text))[0].rstrip(".")
    values = flag.values
    if "{" in values:
        values, clause = "WORD", f"{re.sub('[{}]', '', values)}: {clause}"
    head = f"  {_switch(name, flag)} {values}".rstrip().ljust(_NAME) + "  "
    default = f" ({flag.default})" if len(flag.default) <= _DEFAULT else f" (... {flag.default[-_DEFAULT + 4 :]})"
    default = default if flag.default else ""
    return head + textwrap.shorten(clause, WIDTH - len(head) - len(default), placeholder=" ...") + default
