"""The cache of results that are made once: trained teachers, text vectors, compiled code.

`DFKD_FAST_CACHE`, or `~/.cache/dfkd-fast`. Where there is no home, or none that can be written to (containers under a
number without a name), a folder of this user's below the system's temporary one, which is said. Imports no torch.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
import tempfile
from pathlib import Path

from dfkd_fast.errors import UserError
from dfkd_fast.files.write import make_folder
from dfkd_fast.messages.terminal import show

VARIABLE = "DFKD_FAST_CACHE"


def cache_folder(part: str) -> Path:
    """The folder of one kind of things below the cache; it need not exist. What was asked for is taken as it is."""
    asked = os.environ.get(VARIABLE)
    if asked:
        return Path(asked) / part
    home = _home()
    if home is not None and ((home / part).is_dir() or _can_be_made(home)):
        return home / part
    return _temporary("no home folder" if home is None else f"{home} cannot be written") / part


def _home() -> Path | None:
    try:
        return Path.home() / ".cache" / "dfkd-fast"
    except RuntimeError:  # neither HOME nor an entry of the user
        return None


def _can_be_made(folder: Path) -> bool:
    """Whether a folder can be written to; it is made. Permissions do not tell: there are read-only file systems."""
    try:
        make_folder(folder)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@functools.cache
def _temporary(why: str) -> Path:
    """The folder that stands in, made for this user alone: weights that somebody else put there are never loaded."""
    folder = Path(tempfile.gettempdir()) / f"dfkd-fast-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        there = folder.lstat()
    except OSError as error:
        raise UserError(f"{VARIABLE}: {why}, nor can {folder} ({error.strerror}); name a folder") from error
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or there.st_mode & 0o022:
        raise UserError(f"{VARIABLE}: {why}, and {folder} is not this user's alone; name a folder")
    note = f"{why}: teachers, text vectors and compiled code are kept in {folder}; {VARIABLE} names another folder"
    show(note, file=sys.stderr)
    return folder
