"""Contents of a training script's file: its state dicts, by the keys that lead to them, and its stated accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

WHOLE = "."
"""how `--teacher-weights-key` calls the file's outermost dict"""
_DEPTH = 6  # of nested dicts; scripts use two or three
_MOST_DICTS = 1000  # dicts looked at: a file may refer to itself, or be made to tire a reader
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
    while todo and len(seen) < _MOST_DICTS:
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


_SAYS = {"acc", "acc1", "accuracy", "prec1", "precision1", "top1"}
_BESIDE = {"best", "max", "final", "last", "val", "valid", "validation", "test", "eval", "cls", "avg", "mean", "score"}
_DEEPEST = 3  # of dicts in dicts: `metrics.val.acc`
_MOST_ENTRIES = 10_000  # entries looked at


class Claim(NamedTuple):
    """An accuracy that a file states."""

    top1: float
    """share of images, 0 to 1"""
    entry: str
    """where it stands, `best_acc1` or `metrics.val_acc`"""


def find_claim(content: Mapping[Any, Any]) -> Claim | None:
    """The top-1 accuracy on held-out images that a checkpoint states; None where it states none.

    Entries such as `best_prec1`, `acc`, `val_acc`, `metrics.top1`, with a number above 0 and up to 100: percentages
    where one of them is above 1, else shares. Those of the training split and of top-5 are passed over. An entry of the
    saved state comes before the best of a training, which may be another epoch's; of several the least.
    """
    claims = list(_claims(content))
    if any(claim.top1 > 1 for claim in claims):
        claims = [claim._replace(top1=claim.top1 / 100) for claim in claims]
    return min(claims, key=lambda claim: ("best" in _words(claim.entry), claim.top1), default=None)


def _claims(content: Mapping[Any, Any]) -> Iterator[Claim]:
    """What a file states, in its own scale."""
    todo: list[tuple[str, Mapping[Any, Any], int]] = [("", content, 1)]
    looked = 0
    while todo:
        path, mapping, depth = todo.pop(0)
        for name, value in mapping.items():
            looked += 1
            if looked > _MOST_ENTRIES:
                return
            if not isinstance(name, str):
                continue
            key = f"{path}.{name}" if path else name
            if isinstance(value, Mapping):
                if depth < _DEEPEST and not any(isinstance(inner, Tensor) and inner.dim() for inner in value.values()):
                    todo.append((key, value, depth + 1))
            elif _is_accuracy(name, path) and (number := _number(value)) is not None:
                yield Claim(number, key)


def _is_accuracy(name: str, path: str) -> bool:
    words, around = _words(name), _words(path)
    return bool(words & _SAYS) and words <= _SAYS | _BESIDE and "train" not in around


def _words(name: str) -> set[str]:
    """The words of a key, `best_acc@1`, `val/top-1` and `valAcc1`: lower case, a 1 with what it is of."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    joined = re.sub(r"(top|acc|prec|precision|accuracy)[@_\-]?1(?![0-9])", r"\g<1>1", spaced)
    return {word.replace("accuracy1", "acc1") for word in re.split(r"[^a-z0-9@]+", joined) if word}


def _number(value: object) -> float | None:
    """A number, or a tensor or a text that holds one; None for what is no accuracy."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and not value.is_meta and not value.is_complex() else None
    if isinstance(value, str):
        try:
            value = float(value.strip().rstrip("%"))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value <= 100 else None  # compared first: no float holds an integer of 400 digits
