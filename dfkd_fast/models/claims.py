"""What a foreign checkpoint says of its own accuracy: numbers that training scripts put beside the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

_SAYS = {"acc", "acc1", "accuracy", "prec1", "precision1", "top1"}
_BESIDE = {"best", "max", "final", "last", "val", "valid", "validation", "test", "eval", "cls", "avg", "mean", "score"}
_DEPTH = 3  # of dicts in dicts: `metrics.val.acc`
_MOST = 10_000  # entries looked at


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
            if looked > _MOST:
                return
            if not isinstance(name, str):
                continue
            key = f"{path}.{name}" if path else name
            if isinstance(value, Mapping):
                if depth < _DEPTH and not any(isinstance(inner, Tensor) and inner.dim() for inner in value.values()):
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
