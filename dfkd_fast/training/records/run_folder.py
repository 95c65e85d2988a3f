"""The run folder: is it there, may it be written, who writes it, its first files, and what becomes of them when the
start fails.
"""

from __future__ import annotations

import errno
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from dfkd_fast.config.record import MOVABLE, NETWORKS, write_config
from dfkd_fast.config.sources import load_run
from dfkd_fast.config.train import CONFIG_FILE, TrainConfig
from dfkd_fast.errors import UserError, refused
from dfkd_fast.files.locks import lock_file
from dfkd_fast.files.write import drop_folder, make_folder, sweep
from dfkd_fast.messages.notes import note
from dfkd_fast.messages.terminal import quoted
from dfkd_fast.training.checkpoints.sources import SOURCES_FILE, write_sources

LOCK = "lock"
_BUSY = "is writing this run; let it end, or choose another folder"
_PARTS = ("checkpoints", "images")
_MADE = (*_PARTS, "pool", SOURCES_FILE, CONFIG_FILE)
"""what a start puts into a run folder"""


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise UserError, before a teacher is trained for it, where the run cannot be written or is not there."""
    with refused("--resume" if resume else "--run-dir", folder):
        held = (folder / CONFIG_FILE).exists()
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if resume and not held:
        raise UserError(f"--resume {folder}: no run there")
    if not resume and held:
        go_on = f"--resume {quoted(folder)}"
        raise UserError(f"--run-dir {folder}: holds a run already; resume with {go_on}, or choose another folder")
    if not there.is_dir():
        raise UserError(f"--run-dir {folder}: cannot be written ({os.strerror(errno.ENOTDIR)})")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--run-dir {folder}: cannot be written ({os.strerror(errno.EACCES)})")


@contextmanager
def locked_folder(folder: Path, *, rank: int, resume: bool, world_size: int = 1) -> Iterator[None]:
    """Hold the run folder while the block runs: whoever else starts there is told so.

    Each rank has a lock of its own, so that one that outlives its run is in the way of the next, of fewer processes,
    too. Where the block ends before there is a run, the folder is as it was. Raises UserError as `check_folder`, now
    that nobody else writes.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    file = folder / (LOCK if rank == 0 else f"{LOCK}-{rank}")
    try:
        make_folder(folder)
        handle = lock_file(file, "--run-dir", _BUSY)
    except OSError as error:
        _drop_empty(made)
        raise UserError(f"--run-dir {folder}: cannot be written ({error.strerror})") from None
    try:
        if rank == 0:
            _check_outlived(folder, world_size)
        check_folder(folder, resume=resume)
        yield
    finally:
        if not (folder / CONFIG_FILE).exists():
            with suppress(OSError):
                file.unlink()
            _drop_empty(made)
        os.close(handle)


def _check_outlived(folder: Path, world_size: int) -> None:
    """Raise UserError where a process of an earlier run lives whose rank this run does not have."""
    for file in folder.glob(f"{LOCK}-*"):
        number = file.name.rpartition("-")[2]
        if number.isdecimal() and int(number) >= world_size:
            with refused("--run-dir", file):
                os.close(lock_file(file, "--run-dir", _BUSY))


def _drop_empty(folders: list[Path]) -> None:
    """Delete folders, the innermost first, up to one where another rank's lock is, or what others put there."""
    with suppress(OSError):
        for path in folders:
            path.rmdir()


def claim_folder(folder: Path, config: TrainConfig) -> None:
    """Make the run folder, and write which code its networks are, and the config: where that is, all of it is.

    What cannot be finished is taken away again.
    """
    with taken_back_on_failure(folder):
        try:
            for part in _PARTS:
                make_folder(folder / part)
            write_sources(folder, config)
            write_config(config, folder / CONFIG_FILE)
        except OSError as error:
            raise UserError(f"--run-dir {folder}: cannot be written ({error.strerror})") from None


@contextmanager
def taken_back_on_failure(folder: Path) -> Iterator[None]:
    """Take away, where the block raises, what a start has put into a run folder, and the folders made for it.

    What was there before stays, and so does what others have put there meanwhile.
    """
    new = [path for path in (folder / name for name in _MADE) if not os.path.lexists(path)]
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except Exception:
        for path in new:
            try:
                if path.is_dir() and not path.is_symlink():
                    drop_folder(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:  # the failure itself is what the user must hear of last
                note(f"--run-dir {folder}: {path.name} could not be taken back ({error.strerror}); delete it")
        _drop_empty(missing)
        raise


def follow_moves(folder: Path, config: TrainConfig) -> None:
    """Note in the run's config where its files lie by now, if elsewhere, and the precision, if that is named by now."""
    now = {key: getattr(config, key) for key in (*MOVABLE, *NETWORKS, "precision")}
    written: dict[str, object] = {}
    with suppress(OSError, ValueError):  # `load_run` says what is wrong with it
        written = tomllib.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if any(written.get(key) != (None if value is None else str(value)) for key, value in now.items()):
        write_config(replace(load_run(folder), **now), folder / CONFIG_FILE)


def sweep_folder(folder: Path) -> None:
    """Delete what killed writers have left of small files. Raises OSError."""
    for part in (folder, folder / "images", folder / "checkpoints", *(folder / "checkpoints").glob("rank-*-of-*")):
        sweep(part)
