"""The state dicts within what a training script saved, by the keys that lead to them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

WHOLE = "."
"""how `--teacher-weights-key` calls the file's outermost dict"""
_DEPTH = 6  # of nested dicts; scripts use two or three
_MOST = 1000  # dicts looked at: a file may refer to itself, or be made to tire a reader
_NO_NETWORK = re.compile(r"optimi[sz]er|^optim$|schedule|scaler|rng_state|^amp$|callbacks|hyper_parameters|loops")
_AVERAGED = re.compile(r"(^|[._/])(ema|swa|averaged?|avg)([._/]|$)")


class Entry(NamedTuple):
    """A dict of tensors in a checkpoint."""

    key: str
    """the keys that lead to it, `model.state_dict`; `.` for the whole file"""
    tensors: dict[str, Tensor]
    """what it holds, by name"""
    others: tuple[str, ...]
    """names in it that hold no tensor"""


def is_averaged(key: str) -> bool:
    """Whether a key speaks of averaged weights: `state_dict_ema`, `ema`, `model_ema.module`."""
    return bool(_AVERAGED.search(key))


def find_entries(content: Mapping[object, object]) -> list[Entry]:
    """Every dict of named tensors, the largest first.

    Dicts of an optimiser's or a scheduler's state are passed over, and so is what lies deeper than six dicts or was
    seen already: a dict that contains itself ends here. The outermost dict counts where it has more tensors than any
    within it; a lone tensor beside a `state_dict` makes it no state dict.
    """
    inner: list[Entry] = []
    whole = _entry(WHOLE, content)
    for key, found in _walk(content):
        entry = _entry(key, found)
        if entry is not None:
            inner.append(entry)
    inner.sort(key=lambda entry: -len(entry.tensors))
    if whole is not None and (not inner or len(whole.tensors) > len(inner[0].tensors)):
        return [whole, *inner]
    return inner


def _walk(content: Mapping[object, object]) -> Iterator[tuple[str, Mapping[object, object]]]:
    """The dicts below one, outer ones first, each once."""
    todo: list[tuple[str, Mapping[object, object], int]] = [("", content, 0)]
    seen = {id(content)}
    while todo and len(seen) < _MOST:
        path, mapping, depth = todo.pop(0)
        for name, value in mapping.items():
            if not isinstance(value, Mapping) or not isinstance(name, str) or id(value) in seen:
                continue
            if depth >= _DEPTH or _NO_NETWORK.search(name):
                continue
            seen.add(id(value))
            key = f"{path}.{name}" if path else name
            todo.append((key, value, depth + 1))
            yield key, value


def _entry(key: str, content: Mapping[object, object]) -> Entry | None:
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    inner = {name for name, value in content.items() if isinstance(value, Mapping)}
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor) and name not in inner]
    return Entry(key, tensors, tuple(others)) if tensors else None
