"""The one place where small files are written: whole or not at all, on the disk when the call returns, and with the
permissions that the user's umask leaves.

A file is written under a name of its own in the same folder, synced, renamed, and its folder synced. What a killed
process leaves under such names is no content: `sweep` deletes it. Images of a pool are not: `pool/disk/journal.py`.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from dfkd_fast.errors import UserError

_ENDING = ".partial"
_NAME = 180  # characters that are kept of a name


def write_file(path: Path, content: bytes | str) -> None:
    """Replace a file, or make it. Raises OSError, and then the file is what it was."""
    partial = _beside(path)
    try:
        _write_new(partial, content)
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_folder(path: Path, files: Mapping[str, bytes | str]) -> None:
    """Replace a folder of small files, or make it and the folders above it. Raises OSError, and then there is the
    folder as it was, or, where the very last step failed, none.
    """
    make_folder(path.parent)
    partial = _beside(path)
    try:
        partial.mkdir()
        for name, content in files.items():
            _write_new(partial / name, content)
        sync_folder(partial)
        if path.exists():
            drop_folder(path)
        partial.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def placed_file(path: Path) -> Iterator[Callable[[bytes, int], None]]:
    """Replace a large file, or make it: the block is given what writes bytes at an offset, and the file has its name
    when the block has ended. What killed processes have left of it is deleted first, so that one process alone may be
    making it. Raises OSError, and then the file is what it was.
    """
    sweep(path.parent, of=path.name)
    partial = _beside(path)
    try:
        with _opened(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as handle:
            yield lambda content, offset: _write_all(handle, content, offset)
            os.fsync(handle)
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def all_or_nothing(target: Path, flag: str) -> Iterator[Path]:
    """A path to write a file or a folder to; what was written there, perhaps under names that begin alike, ends up
    beside `target` when the block has ended, and nowhere if it has failed. Raises UserError, naming `flag`, for what
    the system refuses.
    """
    partial = _beside(target)
    try:
        make_folder(target.parent)
        sweep(target.parent, of=target.name)
        partial.mkdir()
        yield partial / target.name
        for path in partial.rglob("*"):
            sync_file(path)
        for made in partial.iterdir():
            made.rename(target.parent / made.name)
        sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{flag} {target}: cannot be written ({reason}); choose another place") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they are there; their names are on the disk when the call returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        with suppress(PermissionError):  # above the first there may be one that can be written to and not read
            sync_folder(folder.parent)


def drop_folder(path: Path) -> None:
    """Delete a folder so that a crash halfway leaves all of it or nothing under its name."""
    hidden = _beside(path)
    path.rename(hidden)
    shutil.rmtree(hidden)


def append_line(path: Path, text: str) -> None:
    """Add a line to a file, making it if need be. A crash may leave a part of the line; see `sync_file`."""
    is_new = not path.exists()
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as handle:
        _write_all(handle, f"{text}\n".encode())
    if is_new:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make what a file holds survive a power cut."""
    with _opened(path, os.O_RDONLY) as handle:
        os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut."""
    sync_file(folder)


def sweep(folder: Path, *, of: str = "") -> None:
    """Delete what killed writers have left in a folder, or there of the file `of`. Nobody may be writing it."""
    for left in folder.glob(f".{glob.escape(of[:_NAME])}*{_ENDING}"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _beside(path: Path) -> Path:
    """A name in the same folder that nobody else has."""
    return path.with_name(f".{path.name[:_NAME]}.{os.getpid()}-{secrets.token_hex(4)}{_ENDING}")


def _write_new(path: Path, content: bytes | str) -> None:
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as handle:
        _write_all(handle, content.encode() if isinstance(content, str) else content)
        os.fsync(handle)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A handle of a file, closed after the block; what the system refuses in the block names the file, too."""
    handle = os.open(path, flags, 0o666)
    try:
        yield handle
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(handle)


def _write_all(handle: int, content: bytes, offset: int | None = None) -> None:
    """Write all of it, where the handle stands or at an offset."""
    rest = memoryview(content)
    while rest:
        wrote = os.write(handle, rest) if offset is None else os.pwrite(handle, rest, offset)
        rest, offset = rest[wrote:], None if offset is None else offset + wrote
