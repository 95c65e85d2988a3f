"""A network of the user's own, by where its code is: `FILE.py:NAME` or `package.module:NAME`, arguments behind a `?`.

One text says all of it, so that a config, a student's header and a message name the same network:
`/home/me/net.py:Net?depth=20`. Imports no torch and runs none of that code.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

from dfkd_fast.errors import UserError

_LIBRARIES = ("tv", "timm", "zoo", "hf", "given")  # given: in Python, as a module
_PROGRAMS = (".pt2", ".pt", ".ts")


class OwnNetwork(NamedTuple):
    """Where the code of a network is."""

    place: str
    """a file that ends in .py, or a module's dotted name"""
    name: str
    """of a class or function in it"""
    arguments: tuple[tuple[str, str], ...]
    """what it is called with, values as they were written"""

    @property
    def is_file(self) -> bool:
        """Whether the place is a file."""
        return self.place.endswith(".py")

    def __str__(self) -> str:
        query = urlencode(self.arguments, quote_via=quote, safe="")
        return f"{self.place}:{self.name}" + (f"?{query}" if query else "")

    def values(self) -> dict[str, Any]:
        """The arguments as Python values: numbers, tuples, true and false; everything else is text."""
        return {key: _value(text) for key, text in self.arguments}


def own_network(spec: str) -> OwnNetwork | None:
    """The place that a spec names; None for a network of ours or of a library. What stands behind a `+` is not its."""
    place, colon, rest = spec.partition("+shared")[0].rpartition(":")
    if not colon or not place or spec.partition(":")[0] in _LIBRARIES:
        return None
    name, _, query = rest.partition("?")
    return OwnNetwork(place, name, tuple(parse_qsl(query, keep_blank_values=True)))


def hf_folder(spec: str) -> Path | None:
    """The folder of a transformers network, `hf:FOLDER`; None for any other spec."""
    library, _, folder = spec.partition("+shared")[0].partition(":")
    return Path(folder) if library == "hf" and folder else None


def program_file(spec: str) -> Path | None:
    """The file of a network that is one by itself, FILE.pt2 or TorchScript's FILE.pt; None for any other spec."""
    is_file = own_network(spec) is None and spec.partition(":")[0] not in _LIBRARIES
    return Path(spec) if is_file and Path(spec).suffix in _PROGRAMS else None


def check_untrained(spec: str, flag: str) -> None:
    """Raise UserError where a network that starts untrained is asked for with published weights: `tv:NAME@WEIGHTS`,
    `zoo:NAME`, or the file of a finished one.
    """
    library, _, name = spec.partition(":")
    if program_file(spec) is not None:
        raise UserError(f"{flag} {spec}: is a finished program, which cannot start untrained; name its network")
    if library == "zoo":
        raise UserError(f"{flag} {spec}: starts untrained, without published weights; choose {name}")
    if library == "tv" and "@" in name:
        plain = spec.partition("@")[0]
        raise UserError(f"{flag} {spec}: starts untrained, without published weights; choose {plain}")


def arguments_flag(flag: str) -> str:
    """The flag of the arguments that a network named by `flag`, a flag or a command, is built with."""
    return "--student-args" if flag in ("--student", "eval") else "--teacher-args"


def resolved(spec: str, arguments: Sequence[str], flag: str) -> str:
    """A spec with its file's absolute path and the `NAME=VALUE` arguments of `flag`-args in it.

    Raises UserError for arguments of another form, and where the network is not one's own.
    """
    own = own_network(spec)
    if own is None:
        if arguments:
            raise UserError(f"{flag}-args {arguments[0]}: only for FILE.py:NAME or package.module:NAME, not {spec}")
        return _absolute(spec)
    added = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{flag}-args {argument}: write NAME=VALUE")
        added.append((key, value))
    place = str(Path(own.place).absolute()) if own.is_file else own.place
    merged = dict(own.arguments) | dict(added)
    return str(OwnNetwork(place, own.name, tuple(merged.items()))) + spec.removeprefix(spec.partition("+shared")[0])


def _absolute(spec: str) -> str:
    """The spec of a folder or program with its absolute path; any other as it is."""
    rest = spec.removeprefix(spec.partition("+shared")[0])
    if (folder := hf_folder(spec)) is not None:
        return f"hf:{folder.absolute()}{rest}"
    return spec if (file := program_file(spec)) is None else str(file.absolute())


def unplaced(spec: str) -> str:
    """A spec without where its code lies, `Net?depth=20`, arguments by name: what stays when the code moves."""
    own, lies = own_network(spec), hf_folder(spec) or program_file(spec)
    if lies is not None:
        return lies.name + spec.removeprefix(spec.partition("+shared")[0])
    if own is None:
        return spec
    own = own._replace(arguments=tuple(sorted(own.arguments)))
    return str(own)[len(own.place) + 1 :] + spec.removeprefix(spec.partition("+shared")[0])


def moved(before: str, spec: str) -> str:
    """Where a resumed run's network lies by now, of a spec given anew: with the arguments that it was begun with,
    unless others are given.
    """
    old, new = own_network(before), own_network(spec)
    if old is None or new is None or new.arguments:
        return spec
    return str(new._replace(arguments=old.arguments)) + spec.removeprefix(spec.partition("+shared")[0])


def folder_name(spec: str) -> str:
    """What a run folder calls a network."""
    own = own_network(spec)
    if own is not None:
        spec = f"{Path(own.place).stem if own.is_file else own.place.rpartition('.')[2]}_{own.name}"
    elif spec.startswith("given:"):
        spec = spec.removeprefix("given:").partition("@")[0]
    elif (lies := hf_folder(spec) or program_file(spec)) is not None:
        spec = lies.stem
    return spec.replace(":", "_").replace("/", "_")


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
