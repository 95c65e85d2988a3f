"""Teachers that were trained before: found by all that they were made from, checked before they are used, shared by
all who may read them, and trained by one process at a time.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd_fast import __version__
from dfkd_fast.config.own_networks import folder_name
from dfkd_fast.config.recipes import TeacherRecipe
from dfkd_fast.config.train import NetworkInput
from dfkd_fast.data.splits import ImageSet
from dfkd_fast.data.stream import LabelledImages
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.files import cache, digests
from dfkd_fast.files.locks import Busy
from dfkd_fast.files.write import make_folder, write_file
from dfkd_fast.messages.refusals import disk_error
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.reporting.console import ConsoleKind, make_console
from dfkd_fast.training.checkpoints.checkpoint import save_network
from dfkd_fast.training.evaluate import Evaluation
from dfkd_fast.training.interrupt import Interrupted
from dfkd_fast.training.teachers import train as teacher
from dfkd_fast.training.teachers.state import ENDING, TrainingState, only_one

_FLAG, _GO_ON = "DFKD_FAST_CACHE", "the same command"


def cached_teacher(
    recipe: TeacherRecipe,
    model_name: str,
    train: ImageSet,
    test: LabelledImages | None,
    *,
    runtime: Runtime,
    stated: NetworkInput | None = None,
    console: ConsoleKind = "auto",
    on_step: Callable[[], None] | None = None,
) -> tuple[nn.Module, ModelInfo]:
    """The teacher that `train_teacher` would give, trained only if it is not there already.

    It lies under `cache_folder()` as safetensors, beside a JSON file that says how it was made, how good it is, and
    what its bytes hash to. Recipe, network, precision and every training pixel decide which file is taken; one that is
    damaged is trained anew. A training that was stopped goes on. Raises UserError where that folder cannot be read or
    written, before anything is trained.
    """
    show = make_console(console, is_main=runtime.is_main).print
    made_from = teacher.made_from(recipe, model_name, train, runtime, stated)
    digest = sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    stem = f"{folder_name(model_name)}-{train.name}-{digest[:16]}"
    entry = _Entry(cache_folder() / stem, model_name, digest, show)
    arguments = (recipe, model_name, train, test)
    settings: dict[str, Any] = {"runtime": runtime, "stated": stated, "console": console, "on_step": on_step}
    found = entry.read(runtime)
    if found is None and runtime.is_main:
        found = entry.make(made_from, arguments, settings)
    elif found is None:  # the main rank's folder is not this one's
        found = teacher.train_teacher(*arguments, **settings)[:2]
    model, info = found
    return model, replace(info, class_names=train.class_names)  # which older files do not have


def cache_folder() -> Path:
    """Where trained teachers are kept: `teachers` below the cache (`dfkd_fast.files.cache`)."""
    return cache.cache_folder("teachers")


@dataclass
class _Entry:
    """One teacher of the cache: `stem`.safetensors and `stem`.json, which is written last."""

    stem: Path
    network: str
    """as the run names it: code of the user's own may lie elsewhere by now than where it was trained"""
    digest: str
    """of what it is made from"""
    show: Callable[[str], None]

    @property
    def weights(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.safetensors")

    @property
    def record(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.json")

    def read(self, runtime: Runtime) -> tuple[nn.Module, ModelInfo] | None:
        """The teacher, checked, where it is there and whole. Raises UserError where it may not be read."""
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            content, made_from = digests.of_file(self.weights), record["hash"]
            owner = self.weights.stat().st_uid
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(error) from error
        except (ValueError, TypeError, KeyError):
            self._damaged(self.record, "it is not what was written")
            return None
        if made_from != self.digest:
            self._damaged(self.record, "it is of another teacher")
            return None
        if "sha256" not in record:
            self.show(f"teacher {self.weights}: of an older dfkd-fast, which recorded no digest: taken as it is")
        elif content != record["sha256"]:
            self._damaged(self.weights, "its SHA-256 is not the recorded one")
            return None
        if owner != os.geteuid():
            self.show(f"teacher {self.weights}: trained by {_user(owner)}, who can change it")
        flag = "--train-teacher"
        model, info = load_model(self.network, weights=self.weights, flag=flag, weights_flag=flag)
        return runtime.place(model).eval(), info

    def make(
        self, made_from: dict[str, Any], arguments: tuple[Any, ...], settings: dict[str, Any]
    ) -> tuple[nn.Module, ModelInfo]:
        """Train the teacher and keep it; another process that does so is waited for, and its teacher taken."""
        _check_writable(self.stem.parent)
        state = TrainingState(self.stem.with_name(f"{self.stem.name}{ENDING}"), made_from, flag=_FLAG, go_on=_GO_ON)
        told: set[str] = set()

        def wait(busy: Busy) -> None:
            if str(busy) not in told:
                self.show(f"{busy}; its teacher is waited for")
                told.add(str(busy))
            if settings["on_step"] is not None:
                settings["on_step"]()

        try:
            with only_one(state.folder, "teacher", wait):
                found = self.read(settings["runtime"])
                if found is None:
                    model, info, evaluation = teacher.train_teacher(*arguments, **settings, state=state)
                    self._write(model, info, evaluation, made_from, settings["runtime"], arguments[3])
                    found = model, info
                state.drop(self.show)
        except Interrupted as stop:
            if state.epochs:
                stop.note = f"the teacher's training goes on after epoch {state.epochs} with {_GO_ON}"
            raise
        except OSError as error:
            raise disk_error(error, self.stem.parent, flag=_FLAG, go_on=_GO_ON) from error
        return found

    def _write(
        self,
        model: nn.Module,
        info: ModelInfo,
        found: Evaluation | None,
        made_from: dict[str, Any],
        runtime: Runtime,
        test: LabelledImages | None,
    ) -> None:
        """Keep a teacher and what is known of it."""
        save_network(self.weights, model, info, top1=found.top1 if found else None)
        result = {"top1_last_epoch": found.top1 if found else None, "held_out_images": len(test) if test else None}
        versions = {"torch": torch.__version__, "dfkd_fast": __version__, "device": runtime.describe()}
        content = {"hash": self.digest, "sha256": digests.of_file(self.weights)}
        text = json.dumps({**made_from, **content, **result, **versions}, indent=1)
        write_file(self.record, text + "\n")  # last: where the record is, the weights are whole

    def _damaged(self, file: Path, why: str) -> None:
        self.show(f"teacher {file}: damaged ({why}); the teacher is trained anew")

    def _unreadable(self, error: OSError) -> UserError:
        file = Path(error.filename or self.weights)
        try:
            whose = f"; it belongs to {_user(file.stat().st_uid)}, who can let others read it (chmod a+r)"
        except OSError:
            whose = ""
        return UserError(f"{_FLAG} {file}: cannot be read ({error.strerror}){whose}; or name another folder")


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user number {number}"


def _check_writable(folder: Path) -> None:
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(f"DFKD_FAST_CACHE {folder.parent}: cannot be written ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"DFKD_FAST_CACHE {folder.parent}: cannot be written; name another folder")
