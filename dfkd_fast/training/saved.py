"""Saved networks: the student of a run, finished or stopped, and the network in a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from dfkd_fast.config.own_networks import hf_folder, own_network, program_file, resolved
from dfkd_fast.config.sections import SavedNetworkInput
from dfkd_fast.config.sources import load_run
from dfkd_fast.errors import UserError
from dfkd_fast.messages.terminal import command, quoted
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.programs import is_torchscript
from dfkd_fast.models.weights.header import HEADER, read_header
from dfkd_fast.models.weights.read import load_weights
from dfkd_fast.models.zoo.cards import is_zoo
from dfkd_fast.training.assemble import stated_values
from dfkd_fast.training.checkpoints.checkpoint import Checkpoint, Shelf, boundary_of, read_checkpoint, written_name
from dfkd_fast.training.checkpoints.sources import check_sources
from dfkd_fast.training.checkpoints.state_tensors import part_tensors

STUDENT_FILE = "student.safetensors"
DEPLOYED, STUDENT = "deployed", "student"
"""parts of a checkpoint: the network that a run saves where it is more than its student, and the student"""


class SavedNetwork(NamedTuple):
    """A network as it was saved."""

    model: nn.Module
    """on the CPU, in float32 and evaluation mode: normalised images (B, C, H, W) -> logits (B, K)"""
    info: ModelInfo
    origin: str
    """where it was read, in words: a file, or a checkpoint with its epoch"""
    run: Path | None
    """the run folder, where it is one's"""


def load_saved(target: Path, stated: SavedNetworkInput, *, flag: str) -> SavedNetwork:
    """The student of a run folder, the network in a file, or one that `is_network` names. `flag`: the command.

    Of a run that has not ended its student is that of the newest whole checkpoint. A network of the user's own code is
    run where its run folder says which code it was and that is unchanged, or `--student` names it.
    Raises UserError for whatever cannot be read, is damaged, or has not been taught yet.
    """
    if is_network(str(target)):
        return _published(str(target), stated, flag)
    if target.is_dir():
        file = target / STUDENT_FILE
        return _in_file(file, stated, flag, run=target) if file.is_file() else _in_checkpoint(target, stated, flag)
    if not target.is_file():
        raise UserError(f"{flag} {target}: no such run folder or file")
    return _in_file(target, stated, flag, run=None)


def is_network(target: str) -> bool:
    """Whether a command's TARGET is a network with its weights, and no run or checkpoint: `zoo:NAME`, `hf:FOLDER`, a
    file of torch.export or TorchScript.
    """
    file = program_file(target)
    is_program = file is not None and (file.suffix == ".pt2" or is_torchscript(file))
    return is_zoo(target) or hf_folder(target) is not None or is_program


def _published(spec: str, stated: SavedNetworkInput, flag: str) -> SavedNetwork:
    if stated.student is not None:
        raise UserError(f"--student {stated.student}: {spec} is a network by itself; leave it out")
    model, info = load_model(spec, **stated_values(stated), pretrained=True, flag=flag)
    return SavedNetwork(model.eval(), info, info.published or spec, None)


def _in_file(file: Path, stated: SavedNetworkInput, flag: str, *, run: Path | None) -> SavedNetwork:
    if stated.student is None:
        _check_trusted(written_name(file, flag=flag), file, run, flag)
    spec = resolved(stated.student or written_name(file, flag=flag), stated.student_args, "--student")
    model, info = load_model(
        spec,
        **stated_values(stated),
        data_set=stated.teacher_data,
        weights=file,
        weights_key=stated.weights_key,
        flag="--student" if stated.student else flag,
        weights_flag=flag,
    )
    return SavedNetwork(model.eval(), info, str(file), run)


def _in_checkpoint(run: Path, stated: SavedNetworkInput, flag: str) -> SavedNetwork:
    """The student of a run that has not ended, as its newest whole checkpoint has it."""
    config = load_run(run, flag)
    path, checkpoint = _newest(run, flag)
    go_on = command("train", "--resume", run)
    place = f"{checkpoint.phase} of epoch {checkpoint.epoch + 1} of {config.method.epochs}"
    if not checkpoint.record["counts"].get("student_steps"):
        raise UserError(f"{flag} {run}: its student has not been taught yet (stopped after {place}); {go_on}")
    if "student" not in checkpoint.record:
        raise UserError(f"{flag} {run}: {path.name} does not say what its student expects; {go_on}")
    saved = read_header({HEADER: json.dumps(checkpoint.record["student"])}, f"{flag} {path}")
    name = str(saved.pop("name"))
    if stated.student is None:
        _check_trusted(name, path, run, flag)
    spec = resolved(stated.student or name, stated.student_args, "--student")
    said: dict[str, Any] = {key: value for key, value in stated_values(stated).items() if value is not None}
    model, info = load_model(spec, **(saved | said), flag="--student" if stated.student else flag)
    tensors = part_tensors(DEPLOYED, checkpoint.tensors) or part_tensors(STUDENT, checkpoint.tensors)
    load_weights(model, tensors, name=spec, path=path, flag=flag)
    sources = {key: f"--{key.replace('_', '-')}" for key in said}  # else the checkpoint says it
    origin = f"{path}, after {place} (the run has not ended)"
    return SavedNetwork(model.eval(), replace(info, sources=sources), origin, run)


def _newest(run: Path, flag: str) -> tuple[Path, Checkpoint]:
    """The newest whole checkpoint of a run. The student is the same on all ranks, so any rank's will do."""
    folder = run / "checkpoints"
    shelves = [Shelf(place) for place in (folder, *sorted(folder.glob("rank-*-of-*")))]
    found = [path for path in (shelf.newest() for shelf in shelves) if path is not None]
    if not found:
        damage = "; ".join(str(why) for shelf in shelves for why in shelf.damage.values())
        why = f"no checkpoint is whole ({damage})" if damage else f"has neither {STUDENT_FILE} nor a checkpoint yet"
        raise UserError(f"{flag} {run}: {why}; {command('train', '--resume', run)}")
    path = max(found, key=boundary_of)
    return path, read_checkpoint(path)


def _check_trusted(name: str, file: Path, run: Path | None, flag: str) -> None:
    """Raise UserError where a network is someone's own code that nobody asked to be run, or that has changed.

    A run folder is the user's, and says which code it was; a file alone may be anybody's.
    """
    if own_network(name) is None:
        return
    ask = f"give --student {quoted(name)}"
    if run is None:
        raise UserError(f"{flag} {file}: its network is code, {name}; to run it {ask}")
    check_sources(run, load_run(run, flag), flag, f"to run it as it is now, {ask}", roles=["student"])
