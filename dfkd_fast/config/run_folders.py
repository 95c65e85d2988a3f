"""Run folders by name: which of a config's default names are free or hold runs, and whether a run there is the same.

Imports no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfkd_fast.config.own_networks import unplaced
from dfkd_fast.config.record import BY_MACHINE, FREE, MOVABLE, NETWORKS, differences
from dfkd_fast.config.train import CONFIG_FILE, TrainConfig
from dfkd_fast.errors import UserError


def _numbered(folder: Path) -> Iterator[Path]:
    """The default run folder and the names that further runs of the same config get: DIR, DIR-2, DIR-3, ..."""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))


def free_folder(folder: Path) -> Path:
    """The first of the default names that holds no run: a run that is made again overwrites nothing."""
    return next(path for path in _numbered(folder) if not (path / CONFIG_FILE).exists())


def newest_run(folder: Path) -> Path:
    """The last of the default names that holds a run; the first where there is none."""
    runs = list(itertools.takewhile(lambda path: (path / CONFIG_FILE).exists(), _numbered(folder)))
    return runs[-1] if runs else folder


def check_same(saved: TrainConfig[Any], config: TrainConfig[Any], folder: Path) -> None:
    """Raise UserError where a resumed run would compute something else than its first part did."""
    if saved.method_name != config.method_name:
        raise UserError(f"--resume {folder}: that is a run of {saved.method_name}, not of {config.method_name}")
    for key, old, new in differences(saved, config):
        same_elsewhere = key in MOVABLE or (key in NETWORKS and unplaced(old) == unplaced(new))
        left_open = key in BY_MACHINE and old == "auto"  # what that came to is compared later
        if not key.startswith(FREE) and not same_elsewhere and not left_open:
            flag = f"--{key.replace('_', '-')}"
            raise UserError(f"{flag} {new}: the run in {folder} has {old}; a resumed run keeps its config")
