"""Checkpoints at phase boundaries, and networks as files. safetensors and JSON only, written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import HEADER, ModelInfo, load_model

PHASES = ("synthesis", "distillation")
"""the phases of an epoch after which a checkpoint may be written, in order"""


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
        return f"{self.epoch:05d}-{PHASES.index(self.phase)}-{self.phase}"

    @property
    def boundary(self) -> int:
        """The number of the boundary in the run."""
        return self.epoch * len(PHASES) + PHASES.index(self.phase)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint beside the others and drop all but the newest `keep`.

    It appears under its name only when it is whole and on the disk. When the disk is full nothing is lost: UserError,
    and the newest earlier checkpoint is still there.
    """
    target, partial = folder / checkpoint.name, folder / f".{checkpoint.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({name: _plain(value) for name, value in checkpoint.tensors.items()}, partial / "state.safetensors")
        record = {"epoch": checkpoint.epoch, "phase": checkpoint.phase, **checkpoint.record}
        (partial / "state.json").write_text(json.dumps(record, indent=1))
        for file in partial.iterdir():
            _sync(file)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise disk_error(error, folder.parent) from error
    for old in checkpoints_in(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path, until: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint in a folder, or None; with `until` the newest that is no later than that boundary
    (`Checkpoint.boundary`).
    """
    found = [path for path in checkpoints_in(folder) if until is None or _boundary(path) <= until]
    if not found:
        return None
    record = json.loads((found[-1] / "state.json").read_text())
    epoch, phase = record.pop("epoch"), record.pop("phase")
    return Checkpoint(epoch=epoch, phase=phase, tensors=load_file(found[-1] / "state.safetensors"), record=record)


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders of whole checkpoints, in the order of the run."""
    names: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in names if not path.name.startswith(".") and (path / "state.json").exists())


def latest_boundary(folder: Path) -> int | None:
    """The boundary (`Checkpoint.boundary`) of the newest whole checkpoint in a folder."""
    found = checkpoints_in(folder)
    return _boundary(found[-1]) if found else None


def oldest_record(folder: Path) -> dict[str, Any]:
    """The record of the oldest checkpoint that is kept."""
    return json.loads((checkpoints_in(folder)[0] / "state.json").read_text())


def disk_error(error: Exception, run_dir: Path) -> Exception:
    """A full disk, quota or file-size limit worded for the user; any other error as it is."""
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    text = str(error)
    if getattr(error, "errno", None) in full or any(os.strerror(code) in text for code in full):
        return UserError(
            f"--run-dir {run_dir}: no room to write ({text}); "
            f"the last checkpoint is whole: free space, then --resume {run_dir}"
        )
    return error


def module_tensors(part: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's state under a part's name."""
    return {f"{part}/{name}": value for name, value in module.state_dict().items()}


def load_module(part: str, module: nn.Module, tensors: Mapping[str, Tensor], *, fitting: bool = False) -> None:
    """Copy a part's state into a module, in place and strictly; with `fitting` what has another shape by now stays."""
    own, saved = module.state_dict(), part_tensors(part, tensors)
    if fitting:
        saved = {name: value if value.shape == own[name].shape else own[name] for name, value in saved.items()}
    module.load_state_dict(saved)


def part_tensors(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part, under their names within it."""
    prefix = f"{part}/"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(part: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimiser's state under a part's name; learning rates are functions of the epoch and need no saving."""
    state = optimizer.state_dict()["state"]
    tensors = {f"{part}/{index}.{key}": value for index, slots in state.items() for key, value in slots.items()}
    steps = [group["step"] for group in optimizer.param_groups if "step" in group]  # apex counts them there
    return tensors | ({f"{part}/steps": torch.tensor([int(step) for step in steps])} if steps else {})


def load_optimizer(part: str, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore an optimiser's state, each tensor in its parameter's memory layout (the fused steps walk both
    together). Where a parameter has another shape by now, as a rank's share of images may, its state starts anew.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved = part_tensors(part, tensors)
    if "steps" in saved:
        _set_steps(optimizer, saved.pop("steps"))
    slots = [(parameters[int(name.partition(".")[0])], name.partition(".")[2], value) for name, value in saved.items()]
    reshaped = {parameter for parameter, _, value in slots if value.ndim and value.shape != parameter.shape}
    for parameter, key, value in slots:
        if parameter not in reshaped:
            like = torch.empty_like(parameter) if value.ndim else value.to(parameter.device)
            optimizer.state[parameter][key] = like.copy_(value)


def _set_steps(optimizer: Optimizer, steps: Tensor) -> None:
    for group, step in zip(optimizer.param_groups, steps.tolist(), strict=True):
        on_device = getattr(optimizer, "capturable", False)
        device = group["params"][0].device
        group["step"] = torch.tensor([step], dtype=torch.int32, device=device) if on_device else step


def save_network(path: Path, model: nn.Module, info: ModelInfo) -> None:
    """Write a network as one safetensors file whose header says what it is: `load_network` needs nothing else."""
    partial = path.with_suffix(".partial")
    try:
        state = {name: _plain(value) for name, value in model.state_dict().items()}
        save_file(state, partial, metadata={HEADER: json.dumps(asdict(info))})
        _sync(partial)
        partial.rename(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise disk_error(error, path.parent) from error


def load_network(path: Path, *, flag: str = "--weights") -> tuple[nn.Module, ModelInfo]:
    """Read what `save_network` wrote. Raises UserError for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{flag} {path}: cannot be read ({error})") from None
    if header is None:
        raise UserError(f"{flag} {path}: not written by dfkd-fast; name its architecture beside it")
    return load_model(json.loads(header)["name"], weights=path, flag=flag)


def _plain(value: Tensor) -> Tensor:
    # contiguous and unshared, as the format wants it; the layout is the reader's choice again
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _boundary(checkpoint: Path) -> int:
    epoch, phase, _ = checkpoint.name.split("-")
    return int(epoch) * len(PHASES) + int(phase)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
