"""Flags and TOML into a config dataclass: one parser (tyro) reads both; what it rejects is worded in our form.

tyro decides, this module only explains: when it rejects the whole, each setting is tried alone, and the first that
fails is named with what its type would have allowed. The only importer of tyro; imports no torch.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from dfkd_fast.config.flag_help import HELP, HelpPage
from dfkd_fast.config.setting import former_flags, settings_of
from dfkd_fast.errors import UserError, one_of, unknown
from dfkd_fast.messages.terminal import page as show_page

C = TypeVar("C")

_EXPECTED = {float: "a number", int: "a whole number", str: "text", Path: "a path"}


@dataclass(frozen=True)
class Setting:
    """One setting as the user wrote it, and what the parser is given for it."""

    flag: str
    """its flag, `--method.bn-weight`"""
    arguments: tuple[str, ...]
    """flag and values for the parser"""
    name: str
    """how a message names it: the flag, or `my.toml: [method] bn_weight`"""
    value: str
    """the value as it was written"""
    is_flag: bool = True
    """written on the command line, not in a file"""

    @property
    def text(self) -> str:
        """The setting as a message shows it."""
        if not self.value:
            return self.name
        return f"{self.name} {self.value}" if self.is_flag else f"{self.name} = {self.value}"


def from_flags(arguments: Sequence[str]) -> list[Setting]:
    """Group a command line into settings: a token that starts with `--`, and the values after it."""
    groups: list[list[str]] = []
    for token in arguments:
        if token.startswith("--") or token == "-h":
            groups.append([token])
        elif groups:
            groups[-1].append(token)
        else:
            raise UserError(f"{token}: unexpected; settings are written --name value")
    settings = []
    for head, *values in groups:
        flag, equals, value = head.partition("=")
        flag = flag.replace("_", "-")
        arguments = (f"{flag}={value}" if equals else flag, *values)
        settings.append(Setting(flag, arguments, flag, " ".join([value, *values]) if equals else " ".join(values)))
    return settings


def from_toml(table: Mapping[str, Any], file: str, section: str = "") -> list[Setting]:
    """The settings of a TOML table, nested tables as sections. `file` names it in messages."""
    settings = []
    for key, value in table.items():
        path = f"{section}.{key}" if section else key
        flag = "--" + path.replace("_", "-")
        if isinstance(value, Mapping):
            settings += from_toml(value, file, path)
            continue
        if isinstance(value, bool):
            head, _, tail = flag[2:].rpartition(".")
            arguments: tuple[str, ...] = (flag if value else f"--{head}{'.' if head else ''}no-{tail}",)
        elif isinstance(value, list):
            arguments = (flag, *(str(item) for item in value))
        else:
            arguments = (f"{flag}={value}",)
        name = f"{file}: [{section}] {key}" if section else f"{file}: {key}"
        settings.append(Setting(flag, arguments, name, json.dumps(value, default=str), is_flag=False))
    return settings


def divide(settings: Sequence[Setting], part: Any) -> tuple[list[Setting], list[Setting]]:
    """The settings that are fields of the config `part`, and the others. A flag of `part` that may stand alone
    (`setting(..., alone=VALUE)`) is given that value.
    """
    known: dict[str, Any] = flag_types(part)
    alone: dict[tuple[str, ...], tuple[str, ...]] = {}
    for key, _, stated in settings_of(part):
        if stated.alone is not None:
            flag = f"--{key.replace('_', '-')}"
            alone[flag,] = (flag, stated.alone)
    own = [
        replace(each, arguments=alone.get(each.arguments, each.arguments)) for each in settings if each.flag in known
    ]
    return own, [each for each in settings if each.flag not in known]


def parse(schema: Any, default: C, settings: Sequence[Setting], *, page: HelpPage, short: str = "") -> C:
    """Apply settings to a config dataclass; the later of two wins.

    `schema` is the type of `default` (parametrised when it is generic). The flags of section `short` may be written
    without its prefix where no other flag has that name. Raises UserError for the first setting that does not fit;
    `--help` and `--help-all` print `page`, and exit.
    """
    known = flag_types(default)
    settings = [_lengthen(setting, known, short) for setting in settings]
    for setting in settings:
        if setting.flag in HELP:
            show_page(page.text(default, short=short, everything=setting.flag == HELP[-1]))
            raise SystemExit(0)
        if setting.flag not in known:
            hints = [*known, *(flag_types(page.beside) if page.beside is not None else ())]
            now = former_flags(default)
            raise _unknown_setting(setting, hints, now.get(setting.flag) or now.get(f"--{short}.{setting.flag[2:]}"))
        if _is_empty_name(setting, known[setting.flag]):
            raise UserError(
                f'{setting.name} "": expected {_expected(_options(known[setting.flag])[0])}, or nothing at all'
            )
    arguments = [argument for setting in settings for argument in setting.arguments]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(schema, args=arguments, default=default)
    except SystemExit:  # rejected
        pass
    for setting in settings:
        if not _fits(schema, default, setting):
            raise _misfit(setting, known[setting.flag])
    raise UserError(" ".join(complaint.getvalue().split()))


def flag_types(config: Any, prefix: str = "--") -> dict[str, Any]:
    """Every flag of a config with the type of its field; switches also in their `no-` form."""
    hints = get_type_hints(type(config))
    found: dict[str, Any] = {}
    for field in fields(config):
        name = field.name.replace("_", "-")
        value = getattr(config, field.name)
        if is_dataclass(value):
            found |= flag_types(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = hints[field.name]
            if hints[field.name] is bool:
                found[f"{prefix}no-{name}"] = bool
    return found


def _lengthen(setting: Setting, known: Mapping[str, Any], short: str) -> Setting:
    """The setting with the prefix of section `short` put back where it was left out."""
    long = f"--{short}.{setting.flag[2:]}"
    if not short or not setting.is_flag or setting.flag in known or long not in known:
        return setting
    head, *values = setting.arguments
    return Setting(long, (long + head[len(setting.flag) :], *values), setting.name, setting.value)


def _is_empty_name(setting: Setting, hint: Any) -> bool:
    """Whether nothing is given where a path, or a text that may be left out, is named: "" would be this folder."""
    named = hint is Path or (type(None) in _options(hint) and {str, Path} & set(_options(hint)))
    return bool(named) and setting.arguments in ((setting.flag, ""), (f"{setting.flag}=",))


def _fits(schema: Any, default: Any, setting: Setting) -> bool:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            tyro.cli(schema, args=list(setting.arguments), default=default)
    except SystemExit:
        return False
    return True


def _misfit(setting: Setting, hint: Any) -> UserError:
    """A known setting with a value that its type does not allow."""
    options = [option for option in _options(hint) if option is not type(None)]
    literals = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    literals += [_EXPECTED[option] for option in options if literals and option in _EXPECTED]
    if literals and setting.value:
        return unknown(setting.name if setting.is_flag else f"{setting.name} =", setting.value, literals)
    if literals:
        return UserError(f"{setting.text}: needs a value; choose {one_of(literals)}")
    if bool in options:
        flag = setting.flag
        wording = f"takes no value; write {flag} to set it" if setting.is_flag else "expected true or false"
        return UserError(f"{setting.text}: {wording}")
    if options[0] in _EXPECTED and len(options) == 1 < len(setting.value.split()) and setting.is_flag:
        return UserError(f"{setting.text}: takes one value")
    return UserError(f"{setting.text}: expected {' or '.join(map(_expected, options))}")


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _expected(hint: Any) -> str:
    if hint in _EXPECTED:
        return _EXPECTED[hint]
    items = get_args(hint)
    plural = f"{_EXPECTED[items[0]].removeprefix('a ')}s"
    return f"a list of {plural}" if Ellipsis in items else f"{len(items)} {plural}"


def _unknown_setting(setting: Setting, known: Iterable[str], renamed: str | None) -> UserError:
    """A setting that no field answers to, with what it is called now, or the nearest one that does."""
    nearest = renamed or nearest_flag(setting.flag, known)
    if setting.is_flag:
        hint = f"did you mean {nearest}?" if nearest else "--help lists them all"
        return UserError(f"{setting.name}: unknown flag; {hint}")
    section = setting.flag[2:].rpartition(".")[0]
    there, _, near = (nearest or "--")[2:].rpartition(".")
    near = near.replace("-", "_")
    if there != section:
        near = f"[{there}] {near}" if there else f"{near} outside of any section"
    return UserError(f"{setting.name}: unknown key{f'; did you mean {near}?' if nearest else ''}")


def nearest_flag(flag: str, known: Iterable[str]) -> str | None:
    """The flag that was most likely meant: the same name in another section, a like spelling, or a like last part."""
    known = list(known)
    by_tail: dict[str, str] = {}
    for name in sorted(known, key=lambda name: name.count(".")):  # of two with one name the shallower, then the earlier
        by_tail.setdefault(_tail(name), name)
    tail = _tail(flag)
    if tail in by_tail:
        return by_tail[tail]
    near = difflib.get_close_matches(flag, known, n=1, cutoff=0.8)
    near += [name for name in known if name.startswith(f"{flag}.")]  # a section for one of its flags
    near += [by_tail[name] for name in difflib.get_close_matches(tail, by_tail, n=1, cutoff=0.7)]
    return near[0] if near else None


def _tail(flag: str) -> str:
    return flag.removeprefix("--").rpartition(".")[2]
