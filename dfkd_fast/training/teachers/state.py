"""Saved state of a teacher's training: a checkpoint after each epoch, under a lock. Training resumes from it bit for
bit, whatever ended it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dfkd_fast import __version__
from dfkd_fast.errors import UserError
from dfkd_fast.files.locks import Busy, lock_file
from dfkd_fast.files.write import drop_folder, make_folder
from dfkd_fast.training.checkpoints.checkpoint import (
    TRAINING,
    Checkpoint,
    Shelf,
    checkpoints_in,
    read_checkpoint,
    save_checkpoint,
)
from dfkd_fast.training.checkpoints.state_tensors import load_module, load_optimizer, module_tensors, optimizer_tensors

ENDING = ".training"
"""of the folder beside the file that is to be written"""
_KEPT = 2
_PAUSE = 0.5


class TrainingState:
    """The checkpoints of one training in a folder of its own, which is gone when the training is over."""

    def __init__(self, folder: Path, made_from: Mapping[str, Any], *, flag: str, go_on: str) -> None:
        """`made_from`: all that decides the result, as JSON; `flag` names the folder in messages, and `go_on` says how
        the training is taken up.
        """
        self.folder, self.flag, self.go_on = folder, flag, go_on
        self.made_from = json.loads(json.dumps(made_from))  # as it will be read

    @property
    def epochs(self) -> int:
        """How many epochs the newest checkpoint has, whole or not; 0: there is none."""
        found = checkpoints_in(self.folder)
        return int(found[-1].name.partition("-")[0]) + 1 if found else 0

    def take_up(
        self, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler, show: Callable[[str], None]
    ) -> int:
        """Restore the newest whole checkpoint, in place, and return how many epochs it has; 0 without one.

        Raises UserError for the training of another teacher.
        """
        shelf = Shelf(self.folder)
        path = shelf.newest()
        for damage in shelf.damage.values():
            show(f"{damage}; {'an older checkpoint is taken' if path else 'the training starts again'}")
        if path is None:
            return 0
        checkpoint = read_checkpoint(path)
        self._check_same(checkpoint.record["made_from"])
        begun, now = checkpoint.record["versions"], _versions(model)
        if begun != now:
            show(f"{self.folder}: begun with {begun}, goes on with {now}: not bit for bit what one of them would give")
        load_module("model", model, checkpoint.tensors)
        load_optimizer("optimizer", optimizer, checkpoint.tensors)
        scaler.load_state_dict(checkpoint.record["scaler"])
        for older in shelf.damage:
            drop_folder(older)
        return checkpoint.epoch + 1

    def save(self, epoch: int, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Write the state after an epoch, which counts from 0. Raises UserError where the system refuses."""
        tensors = module_tensors("model", model) | optimizer_tensors("optimizer", optimizer)
        record = {"made_from": self.made_from, "versions": _versions(model), "scaler": scaler.state_dict()}
        checkpoint = Checkpoint(epoch=epoch, phase=TRAINING, tensors=tensors, record=record)
        save_checkpoint(self.folder, checkpoint, keep=_KEPT, flag=self.flag, go_on=self.go_on)

    def drop(self, show: Callable[[str], None]) -> None:
        """The training is over, and what it was for is on the disk; says so where its checkpoints cannot be deleted."""
        try:
            shutil.rmtree(self.folder)  # halfway is no harm: the teacher is there, and its checkpoints are checked
        except OSError as error:
            show(f"{self.folder}: could not be deleted ({error.strerror}); the training is over, nothing needs it")

    def _check_same(self, before: Mapping[str, Any]) -> None:
        changed = [f"{key} {new} (not {old})" for key, old, new in _differences(before, self.made_from) if old != new]
        if changed:
            before_it = before.get("precision")
            in_it = f", with --precision {before_it}" if before_it != self.made_from.get("precision") else ""
            raise UserError(
                f"{self.flag} {self.folder}: the training of another teacher; this one has {', '.join(changed[:3])}; "
                f"give the same flags as before{in_it}, or delete that folder"
            )


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from ((f"{key} {name}", a, b) for name, a, b in _differences(old, new))
        else:
            yield key, old, new


def _versions(model: nn.Module) -> str:
    device = next(model.parameters()).device.type
    return f"dfkd-fast {__version__} and torch {torch.__version__} on {device}"


@contextmanager
def only_one(folder: Path, flag: str, wait: Callable[[Busy], None]) -> Iterator[None]:
    """Hold the lock of a training's folder, which is made, for the block; the system releases it when the process ends.

    While another process has it, `wait` is called every half second with who that is, and raises not to wait. A folder
    without a checkpoint is gone after the block. Raises OSError.
    """
    handle = None
    while handle is None:
        make_folder(folder)
        try:
            handle = lock_file(folder / "lock", flag, "is training it; let it end, or stop it")
        except Busy as busy:
            wait(busy)
            time.sleep(_PAUSE)
        except FileNotFoundError:  # the one that had it has just deleted the folder
            continue
    try:
        yield
    finally:
        if not checkpoints_in(folder):
            shutil.rmtree(folder, ignore_errors=True)  # a lock and nothing else: what stays is in nobody's way
        os.close(handle)
