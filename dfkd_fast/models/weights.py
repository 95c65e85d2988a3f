"""Reading network weights: safetensors, or a torch file that holds nothing but tensors. Never a pickle of objects."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dfkd_fast.errors import UserError
from dfkd_fast.models.sealed import check_seal

_WRAPPERS = ("state_dict", "model")  # keys under which training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
_SHOWN = 3


class Weights(NamedTuple):
    """What a weights file holds."""

    tensors: dict[str, Tensor]
    """parameters and buffers by name"""
    metadata: dict[str, str]
    """the header's text entries; only safetensors files have any"""


def read_weights(path: Path, *, flag: str) -> Weights:
    """Read a `.safetensors` file, or any other file as a tensors-only torch checkpoint; wrappings are taken off.

    Raises UserError, naming `flag`, when there is no such file or it holds anything but named tensors.
    """
    if not path.is_file():
        raise UserError(f"{flag} {path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, flag)
    return Weights(_unwrap(_read_torch(path, flag), path=path, flag=flag), {})


def _read_safetensors(path: Path, flag: str) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise UserError(f"{flag} {path}: not a readable safetensors file ({error})") from error
    check_seal(tensors, metadata, what=f"{flag} {path}")
    return Weights(_without_prefixes(tensors), metadata)


def _read_torch(path: Path, flag: str) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint can make the unpickler fail in any way
        found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found is None:
            raise UserError(f"{flag} {path}: not a readable torch checkpoint ({type(error).__name__})") from error
        refusal = f"holds a pickled {found[1]}, which is not safe to read"
        raise UserError(f"{flag} {path}: {refusal}; save the network's state_dict alone") from error


def _unwrap(content: object, *, path: Path, flag: str) -> dict[str, Tensor]:
    """Find the state dict in what a training script saved: below `state_dict` or `model`, without wrapper prefixes."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise UserError(f"{flag} {path}: holds a {type(content).__name__}, not a state dict")
    strangers = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise UserError(f"{flag} {path}: not a state dict: {_listed(strangers)} hold no tensor")
    return _without_prefixes({str(key): value for key, value in content.items()})


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Wrappers rename every key, so a prefix that only some keys have belongs to the network."""
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            return _without_prefixes({key.removeprefix(prefix): value for key, value in tensors.items()})
    return tensors


def difference(network: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> str:
    """Say in one line how a file's tensors differ from a network's, in names and shapes; empty when they fit."""
    # Files older than PyTorch 0.4.1 lack the BN batch counters; load_state_dict starts them at zero.
    missing = [key for key in network if key not in file and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in file if key not in network]
    reshaped = [
        f"{key} {_shape(file[key])} instead of {_shape(network[key])}"
        for key in network
        if key in file and file[key].shape != network[key].shape
    ]
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return "; ".join(f"{len(keys)} {what}: {_listed(keys)}" for what, keys in parts.items() if keys)


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, name: str, path: Path, flag: str) -> None:
    """Copy a file's tensors into `model`, strictly. Raises UserError with the difference when they do not fit."""
    differs = difference(model.state_dict(), tensors)
    if differs:
        raise UserError(f"{flag} {path}: does not fit {name} ({differs})")
    complete = {**model.state_dict(), **tensors}  # the batch counters that `difference` excuses
    model.load_state_dict(complete)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
