"""A run of seconds: stopped after a taught epoch, and gone on to its end."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from dfkd_fast.training.train import train

sys.path.append(str(Path(__file__).parents[1] / "methods"))
from tiny_runs import go_on, tiny, write_teacher


class Runs(NamedTuple):
    """Folders of one run at two times."""

    stopped: Path
    ended: Path


def make_runs(folder: Path) -> Runs:
    """Run it in a folder."""
    found = Runs(folder / "stopped", folder / "ended")
    teacher = write_teacher(folder / "teacher.safetensors")
    train(tiny("fast", teacher, found.ended, stop_after_epoch=2))
    shutil.copytree(found.ended, found.stopped)
    go_on(found.ended)
    return found
