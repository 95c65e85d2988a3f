"""The run folder: is it there, may it be written, its first files, and what becomes of them when the start fails."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfkd_fast.config import CONFIG_FILE, TrainConfig, write_config
from dfkd_fast.errors import UserError, refused
from dfkd_fast.terminal import quoted

_PARTS = ("checkpoints", "images")


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise UserError, before a teacher is trained for it, where the run cannot be written or is not there."""
    with refused("--resume" if resume else "--run-dir", folder):
        held = (folder / CONFIG_FILE).exists()
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if resume and not held:
        raise UserError(f"--resume {folder}: no run there")
    if not resume and held:
        go_on = f"--resume {quoted(folder)}"
        raise UserError(f"--run-dir {folder}: holds a run already; go on with {go_on}, or choose another folder")
    if not there.is_dir():
        raise UserError(f"--run-dir {folder}: cannot be written ({os.strerror(errno.ENOTDIR)})")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--run-dir {folder}: cannot be written ({os.strerror(errno.EACCES)})")


def claim_folder(folder: Path, config: TrainConfig) -> None:
    """Make the run folder and write the config. What cannot be finished is taken away again."""
    with taken_back_on_failure(folder):
        try:
            for part in _PARTS:
                (folder / part).mkdir(parents=True, exist_ok=True)
            write_config(config, folder / CONFIG_FILE)
        except OSError as error:
            raise UserError(f"--run-dir {folder}: cannot be written ({error.strerror})") from None


@contextmanager
def taken_back_on_failure(folder: Path) -> Iterator[None]:
    """Take away, where the block raises, what it has put into a run folder, and the folders made for it.

    What was there before stays.
    """
    before = set(folder.iterdir()) if folder.is_dir() else set()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except Exception:
        for path in set(folder.iterdir()) - before if folder.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for path in missing:  # the innermost first
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise
