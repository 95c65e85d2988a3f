"""A user's mistake, worded in one line: the flag, the value, and what would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can fix. The command line prints its text and exits with status 2, without a
    traceback.
    """


class LostRank(UserError):  # noqa: N818 - what is lost, not who erred
    """Another of a run's processes has ended, or does not answer. What is on the disk is whole."""


@contextmanager
def refused(flag: str, path: object) -> Iterator[None]:
    """Word what the file system says of `path` (a name too long, no permission, a damaged disk) by its flag."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{flag} {path}: {(error.strerror or str(error)).lower()}") from error


def one_of(choices: Iterable[str]) -> str:
    """Word a list of choices: `a, b or c`."""
    *rest, last = [str(choice) for choice in choices]
    return f"{', '.join(rest)} or {last}" if rest else last


def unknown(flag: str, value: object, choices: Iterable[str]) -> UserError:
    """The error for a value that is none of `choices`; names the nearest one first when there is one."""
    choices = list(choices)
    nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return UserError(f"{flag} {value}: {hint}choose {one_of(choices)}")
