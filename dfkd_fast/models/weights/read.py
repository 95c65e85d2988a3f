"""Reading network weights: safetensors, or a torch file that holds nothing but tensors. Never a pickle of objects."""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dfkd_fast.errors import UserError, one_of, unknown
from dfkd_fast.models.weights.contents import WHOLE, Claim, Entry, find_claim, find_entries, is_averaged
from dfkd_fast.models.weights.fitting import difference, listed
from dfkd_fast.models.weights.formats import SHELLS, is_safetensors, is_torch, not_weights
from dfkd_fast.models.weights.header import check_seal

_DAMAGED = "the file is damaged, or its training diverged: take another"
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's


@dataclass(frozen=True)
class Weights:
    """What a weights file holds."""

    path: Path
    flag: str
    """what named it"""
    entries: tuple[Entry, ...]
    """every dict of tensors in it, the largest first"""
    metadata: Mapping[str, str]
    """the header's text entries; only safetensors files have any"""
    claim: Claim | None = None
    """the accuracy that a file of others states"""

    @property
    def key_flag(self) -> str:
        """The flag that chooses among its entries."""
        return f"{self.flag}-key" if self.flag.startswith("--") else "--weights-key"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, of the one entry or the averaged one of two, without wrappers' prefixes."""
        return self.tensors_of(None)

    def tensors_of(self, key: str | None) -> dict[str, Tensor]:
        """The same of the entry that `key` names, or of the tensors in one that have it as prefix. Raises UserError for
        any other key.
        """
        by_key = {entry.key: entry.tensors for entry in self.entries}
        part = {} if key is None or key in by_key else self._below(key)
        if key not in (None, *by_key) and not part:
            raise unknown(self.key_flag, key, by_key)
        found = _without_prefixes(part or by_key[key or self.choose(list(by_key))])
        check_numbers(found, f"{self.flag} {self.path}")
        return found

    def _below(self, key: str) -> dict[str, Tensor]:
        """The tensors of one entry whose names begin with what `key` says behind the entry's own."""
        for entry in self.entries:
            start = "" if entry.key == WHOLE else f"{entry.key}."
            prefix = f"{key.removeprefix(start)}."
            below = {
                name.removeprefix(prefix): value for name, value in entry.tensors.items() if name.startswith(prefix)
            }
            if key.startswith(start) and below:
                return below
        return {}

    def choose(self, keys: Sequence[str]) -> str:
        """The only one of several keys, or of a pair the averaged one. Raises UserError, with the list and the flag,
        where that leaves a choice.
        """
        averages = [key for key in keys if is_averaged(key)]
        if len(keys) == 1 or (len(keys) == 2 and len(averages) == 1):
            return (averages or keys)[0]
        raise UserError(
            f"{self.flag} {self.path}: holds {len(keys)} networks that could be meant; choose one by {self.key_flag}: "
            f"{one_of(keys[:8])}"
        )


def check_numbers(tensors: Mapping[str, Tensor], what: str, *, why: str = _DAMAGED) -> None:
    """Raise UserError, which begins with `what`, for the first tensor that no network computes with: numbers that are
    not finite, a negative variance. `why` says how that comes, and what to do.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            continue  # counters; what is no plain tensor is refused where it is loaded
        wrong = int(
            (~(tensor.float() if tensor.element_size() == 1 else tensor).isfinite()).sum()
        )  # float8 has no test
        if wrong:
            raise UserError(f"{what}: {name} holds {wrong} of {tensor.numel()} numbers that are not finite; {why}")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise UserError(f"{what}: {name} holds a negative variance; {why}")


def read_weights(path: Path, *, flag: str) -> Weights:
    """Read a safetensors file, or a tensors-only torch checkpoint; which of the two it is, its content says.

    Raises UserError, naming `flag`, when there is no such file or it holds anything but named tensors.
    """
    if not path.is_file():
        raise UserError(f"{flag} {path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        other, safe, torches = not_weights(path), is_safetensors(path), is_torch(path)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror})") from error
    safe = safe or (path.suffix == ".safetensors" and not torches)
    kind = "safetensors file" if safe else "torch checkpoint"
    if other is not None:
        raise UserError(f"{flag} {path}: is {other.what}, not a readable {kind}; {other.hint}")
    if safe:
        return _read_safetensors(path, flag)
    content = _read_torch(path, flag)
    if not isinstance(content, Mapping):
        raise UserError(f"{flag} {path}: holds a {type(content).__name__}, not a state dict")
    entries = find_entries(content)
    if not entries:
        strangers = listed([str(key) for key in content])
        raise UserError(f"{flag} {path}: not a state dict: {strangers or 'it is empty'} hold no tensor")
    return Weights(path, flag, tuple(entries), {}, find_claim(content))


def _read_safetensors(path: Path, flag: str) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise UserError(f"{flag} {path}: not a readable safetensors file ({error})") from error
    check_seal(tensors, metadata, what=f"{flag} {path}")
    return Weights(path, flag, (Entry(WHOLE, tensors, ()),), metadata, find_claim(metadata))


def _read_torch(path: Path, flag: str) -> object:
    try:
        # an open file, since torch would go by the suffix of a path
        with torch.serialization.safe_globals([*SHELLS]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint can make the unpickler fail in any way
        found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found is None:
            raise UserError(f"{flag} {path}: not a readable torch checkpoint ({type(error).__name__})") from error
        refusal = f"holds a pickled {found[1]}, which is not safe to read"
        raise UserError(f"{flag} {path}: {refusal}; save the network's state_dict alone") from error


def load_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    name: str,
    path: Path,
    flag: str,
    spare: Collection[str] = (),
) -> None:
    """Copy a file's tensors into `model`, strictly but for the names in `spare`, which may be missing.

    Raises UserError with the difference when they do not fit, and for tensors that are not plain numbers in memory.
    """
    own = model.state_dict()
    wanted = {key: value for key, value in own.items() if key not in spare or key in tensors}
    differs = difference(wanted, tensors)
    if differs:
        raise UserError(f"{flag} {path}: does not fit {name} ({differs})")
    for key, value in tensors.items():
        if value.is_meta or value.layout is not torch.strided:
            what = "has no values (a meta tensor)" if value.is_meta else "is a sparse tensor"
            raise UserError(f"{flag} {path}: {key} {what}; save dense ones")
    model.load_state_dict({**own, **tensors})  # the batch counters that `difference` excuses, and the spare ones


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Wrappers rename every key, so a prefix that only some keys have belongs to the network."""
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            return _without_prefixes({key.removeprefix(prefix): value for key, value in tensors.items()})
    return tensors
