r"""Safe output to a terminal: foreign names escaped, commands quoted for a shell, lines in any encoding.

A file, a class or a network may be called anything, a terminal's control sequences included. Whatever a command prints
goes through `show` or `page`, and what it says last through `shown` (`cli.report`), so that none of it is obeyed.
Imports nothing of ours.
"""

from __future__ import annotations

import os
import shlex
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

_LONGEST = 4000
"""characters of a line; of a longer one the middle is left out"""


def shown(text: object) -> str:
    r"""The text as one line that a terminal shows and does not obey: `\x1b`, `\n`, and `\xff` for a byte of no UTF-8.

    Control, format (bidirectional marks), private and unassigned characters are escaped, every other one stays.
    """
    line = "".join(_shown_character(character) for character in str(text))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"


def show(line: object, *, file: TextIO | None = None) -> None:
    """Print a line that may hold names of the user's, at once."""
    print(shown(line), file=file or sys.stdout, flush=True)


def page(text: str, *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print a text of our own, of any number of lines."""
    print(text, end=end, file=file or sys.stdout, flush=True)


def command(*words: str | Path) -> str:
    """A `dfkd-fast` command line that a POSIX shell, once it is pasted there, reads as these words."""
    return " ".join(["dfkd-fast", *(quoted(word) for word in words)])


def quoted(word: str | Path) -> str:
    r"""One word for a shell: as it is, in quotes where it must be, in `$'...'` where it has characters to be escaped.

    A path that starts with a dash gets `./` in front, so that it is no flag.
    """
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    if shown(text) == text:
        return shlex.quote(text)
    return "$'" + "".join(_quoted_character(character) for character in text) + "'"


def prepare_streams(streams: Iterable[Any] | None = None) -> None:
    """Let standard output and error escape what their encoding lacks (ASCII, Latin-1), in place of a traceback."""
    for stream in (sys.stdout, sys.stderr) if streams is None else streams:
        if hasattr(stream, "reconfigure"):  # a test's, or another program's, may be anything
            stream.reconfigure(errors="backslashreplace")


def _shown_character(character: str) -> str:
    kept = character.isprintable() or unicodedata.category(character) == "Zs"  # wide and narrow spaces
    return character if kept else _escaped(character)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _quoted_character(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character in "\n\t":
        return _escaped(character)
    if _shown_character(character) == character:
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
