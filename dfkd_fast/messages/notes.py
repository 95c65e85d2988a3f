"""Lines that say what was decided on the way: printed once, however often the same is decided."""

from __future__ import annotations

import functools
import os

from dfkd_fast.messages.terminal import show


@functools.cache
def note(text: str) -> None:
    """Print `text` on standard output, the first time that this process has it to say; of several ranks the first."""
    if os.environ.get("RANK", "0") == "0":  # torchrun's, and --devices'
        show(text)


def printable(name: object) -> str:
    r"""A file's or class's name as UTF-8, for a message or a file: bytes that are none become `\xe9`.

    Other characters stay, since a class goes by this name: what a terminal would obey `terminal.shown` escapes.
    """
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
