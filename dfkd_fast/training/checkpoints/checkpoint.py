"""Checkpoints at phase boundaries, and networks as files. safetensors and JSON only, written whole or not at all, and
checked against their checksums before they are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from dfkd_fast import __version__
from dfkd_fast.errors import UserError
from dfkd_fast.files.digests import crc_of_json, find_damage, seal
from dfkd_fast.files.write import drop_folder, write_file, write_folder
from dfkd_fast.messages.refusals import disk_error
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.weights.header import read_header, sealed_header

PHASES = ("synthesis", "distillation")
"""the phases of an epoch after which a checkpoint may be written, in order"""
TRAINING = "training"
"""the only phase of an epoch of a teacher's training"""
_NAMES = (*PHASES, TRAINING)

MAGIC, VERSION = "dfkd-fast checkpoint", 2
_RENAMED = "synthesis_optimizer-"
"""what version 1 calls otherwise: a generator's lasting optimiser had the size of its images for a name"""
_RECORD, _TENSORS = "state.json", "state.safetensors"


class DamagedCheckpoint(UserError):  # noqa: N818 - what is damaged, not who erred
    """A checkpoint is not as it was written."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run at the boundary after `phase` of `epoch`."""

    epoch: int
    phase: str
    tensors: dict[str, Tensor]
    """state of the networks and optimisers, flat: "student/conv1.weight" """
    record: dict[str, Any]
    """everything else: pool manifest, seconds by phase, counts, config hash; JSON"""

    @property
    def name(self) -> str:
        """Folder name; sorts in the order of the run."""
        return f"{self.epoch:05d}-{_NAMES.index(self.phase)}-{self.phase}"

    @property
    def boundary(self) -> int:
        """The number of the boundary in the run."""
        return self.epoch * len(PHASES) + _NAMES.index(self.phase)


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, keep: int, flag: str = "--run-dir", go_on: str | None = None
) -> Path:
    """Write a checkpoint beside the others and drop all but the newest `keep`.

    It appears under its name only when it is whole and on the disk. When the disk is full nothing is lost: UserError,
    and the newest earlier checkpoint is still there.
    """
    target = folder / checkpoint.name
    content = save({name: _plain(value) for name, value in checkpoint.tensors.items()})
    body = {"epoch": checkpoint.epoch, "phase": checkpoint.phase, "record": checkpoint.record}
    table = {"magic": MAGIC, "version": VERSION, "program": __version__, **body, "files": {_TENSORS: seal(content)}}
    table = json.loads(json.dumps(table))  # as it will be read
    try:
        write_folder(target, {_TENSORS: content, _RECORD: json.dumps({**table, "crc": crc_of_json(table)}, indent=1)})
        for old in checkpoints_in(folder)[:-keep]:
            drop_folder(old)
    except OSError as error:
        raise disk_error(error, folder.parent, flag=flag, go_on=go_on) from error
    return target


def latest_checkpoint(folder: Path, until: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint in a folder, or None; with `until` the newest that is no later than that boundary
    (`Checkpoint.boundary`).
    """
    found = Shelf(folder).newest(until)
    return None if found is None else read_checkpoint(found)


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders of checkpoints, whole or not, in the order of the run."""
    names: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in names if path.name.endswith(_NAMES) and path.name[0].isdigit() and path.is_dir())


def oldest_record(folder: Path) -> dict[str, Any] | None:
    """The record of the oldest checkpoint that is kept; None where it cannot be read any more."""
    try:
        found: dict[str, Any] = read_record(checkpoints_in(folder)[0])["record"]
    except DamagedCheckpoint:
        return None
    return found


def boundary_of(checkpoint: Path) -> int:
    """The number of the boundary (`Checkpoint.boundary`) that a checkpoint's folder is named after."""
    epoch, phase, _ = checkpoint.name.split("-")
    return int(epoch) * len(PHASES) + int(phase)


class Shelf:
    """The checkpoints in a folder, each read and checked when it is first asked about."""

    def __init__(self, folder: Path) -> None:
        self.paths = checkpoints_in(folder)
        self.damage: dict[Path, DamagedCheckpoint] = {}
        """what was found not to be whole, and why"""
        self._whole: set[Path] = set()

    def newest(self, until: int | None = None) -> Path | None:
        """The newest whole one, that is no later than the boundary `until`. Raises UserError for another format."""
        for path in reversed(self.paths):
            if (until is None or boundary_of(path) <= until) and self._is_whole(path):
                return path
        return None

    def _is_whole(self, path: Path) -> bool:
        if path not in self._whole and path not in self.damage:
            try:
                read_checkpoint(path)
                self._whole.add(path)
            except DamagedCheckpoint as damage:
                self.damage[path] = damage
        return path in self._whole


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint. Raises DamagedCheckpoint, which names file and place, and UserError for one that
    another version of this program wrote.
    """
    table = read_record(path)
    content = _content(path / _TENSORS)
    place = find_damage(content, table["files"][_TENSORS])
    if place is not None:
        raise DamagedCheckpoint(f"{path / _TENSORS}: {place}")
    tensors = load(content)
    if table["version"] < 2 and any(name.startswith(_RENAMED) for name in tensors):
        raise UserError(
            f"{path / _TENSORS}: written by dfkd-fast {table.get('program')} in format {table['version']}, in which a "
            "generator's optimiser is kept otherwise: resume with that program, or start a new run"
        )
    if table["version"] < 2:  # what a learned start's weights were called
        tensors = {name.replace("/start.learnt.", "/start.meta_parameters."): value for name, value in tensors.items()}
    return Checkpoint(epoch=table["epoch"], phase=table["phase"], tensors=tensors, record=table["record"])


def read_record(path: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors: `epoch`, `phase`, `record`, `files`. Raises as `read_checkpoint`."""
    file = path / _RECORD
    try:
        table = json.loads(_content(file))
    except ValueError as error:
        raise DamagedCheckpoint(f"{file}: damaged ({error})") from None
    if not isinstance(table, dict):
        raise DamagedCheckpoint(f"{file}: damaged (it is no table)")
    if table.get("magic") != MAGIC and "crc" not in table:
        raise UserError(
            f"{file}: written by a dfkd-fast {__version__} of before checkpoints had checksums; this one cannot check "
            "it: resume with the program that wrote it, or start a new run"
        )
    if table.pop("crc", None) != crc_of_json(table):  # first: what it says of its version may be the damage
        raise DamagedCheckpoint(f"{file}: damaged (its checksum does not fit)")
    version: int = table["version"]
    if version > VERSION:
        by = f"dfkd-fast {table.get('program')}"
        raise UserError(f"{file}: format {version}, written by {by}; this program reads up to {VERSION}: use that one")
    if path.name != Checkpoint(epoch=table["epoch"], phase=table["phase"], tensors={}, record={}).name:
        raise DamagedCheckpoint(f"{file}: of another checkpoint, {table['phase']} of epoch {table['epoch'] + 1}")
    return table


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DamagedCheckpoint(f"{file}: {why}") from error


def save_network(path: Path, model: nn.Module, info: ModelInfo, *, top1: float | None = None) -> None:
    """Write a network as one safetensors file whose header says what it is: `load_network` needs nothing else.

    `top1`: its share of held-out images, kept for whoever loads it to compare with (`ModelInfo.claimed_top1`). Raises
    OSError, and then the file is what it was.
    """
    header = info.header() | ({} if top1 is None else {"top1": top1})
    state = {name: _plain(value) for name, value in model.state_dict().items()}
    write_file(path, _in_order(save(state, sealed_header(state, header))))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its header's text entries sorted. safetensors shuffles them: the same network would be
    another file each time.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def load_network(path: Path, *, flag: str = "--weights") -> tuple[nn.Module, ModelInfo]:
    """Read what `save_network` wrote. Raises UserError for any other file, and for one that is damaged.

    Where the network is the user's own, its code is run.
    """
    return load_model(written_name(path, flag=flag), weights=path, flag=flag, weights_flag=flag)


def written_name(path: Path, *, flag: str = "--weights") -> str:
    """What a file that `save_network` wrote calls its network. Raises UserError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = read_header(file.metadata() or {}, f"{flag} {path}")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{flag} {path}: cannot be read ({error})") from None
    if not header:
        raise UserError(f"{flag} {path}: not written by dfkd-fast; name its architecture beside it")
    name: str = header["name"]
    return name


def _plain(value: Tensor) -> Tensor:
    # contiguous and unshared, as the format wants it; the layout is the reader's choice again
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
