"""The run folder: is it there, may it be written, and its first files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from dfkd_fast.config import CONFIG_FILE, TrainConfig, write_config
from dfkd_fast.errors import UserError


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise UserError, before a teacher is trained for it, where the run cannot be written or is not there."""
    if resume and not (folder / CONFIG_FILE).exists():
        raise UserError(f"--resume {folder}: no run there")
    if not resume and (folder / CONFIG_FILE).exists():
        raise UserError(
            f"--run-dir {folder}: holds a run already; go on with --resume {folder}, or choose another folder"
        )
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--run-dir {folder}: cannot be written ({os.strerror(errno.ENOTDIR)})")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--run-dir {folder}: cannot be written ({os.strerror(errno.EACCES)})")


def claim_folder(folder: Path, config: TrainConfig) -> None:
    """Make the run folder and write the config."""
    try:
        for part in ("checkpoints", "images"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        write_config(config, folder / CONFIG_FILE)
    except OSError as error:
        raise UserError(f"--run-dir {folder}: cannot be written ({error.strerror})") from None
