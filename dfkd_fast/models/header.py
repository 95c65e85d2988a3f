"""What a network's file says of itself: the entry of its header, checked before anything is built from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from dfkd_fast.errors import UserError
from dfkd_fast.models.info import INTERPOLATIONS
from dfkd_fast.models.sealed import HEADER, SEAL

_MOST = {"num_classes": 1_000_000, "image_size": 16_384, "in_chans": 1024}
_LARGEST = 1e4  # of a mean or a spread, for pixels in [0, 1]


def read_header(metadata: Mapping[str, str], what: str) -> dict[str, Any]:
    """The ModelInfo in a file's header, as keyword arguments; empty for a file that others wrote.

    What a newer dfkd-fast may have added is kept. Raises UserError, which begins with `what`, for an entry that is no
    such table, or with a value that no network has.
    """
    if HEADER not in metadata:
        return {}
    try:
        table = json.loads(metadata[HEADER])
    except (ValueError, RecursionError):
        raise UserError(f"{what}: its header is damaged (the entry {HEADER} is no JSON)") from None
    if not isinstance(table, dict):
        raise UserError(f"{what}: its header is damaged (the entry {HEADER} is no table)")
    for key, check in _CHECKS.items():
        if key not in table and key == "in_chans":  # older files have none
            continue
        if not check(table.get(key)):
            raise UserError(f"{what}: its header is damaged ({key} = {_shown(table.get(key))})")
    for key, check in _MAY.items():
        if table.get(key) is not None and not check(table[key]):
            raise UserError(f"{what}: its header is damaged ({key} = {_shown(table[key])})")
    channels = len(table["mean"])
    if len(table["std"]) != channels or table.get("in_chans", channels) != channels:
        raise UserError(f"{what}: its header is damaged (mean, std and in_chans are of different numbers of channels)")
    table.pop(SEAL, None)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(most: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _are_numbers(low: float) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        return isinstance(value, list) and bool(value) and all(_is_number(item, low) for item in value)

    return check


def _is_number(value: object, low: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value <= _LARGEST


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else f"{text[:40]}..."


_CHECKS: dict[str, Callable[[object], bool]] = {
    "name": _is_name,
    **{key: _is_count(most) for key, most in _MOST.items()},
    "mean": _are_numbers(-_LARGEST),
    "std": _are_numbers(0),
}
_MAY: dict[str, Callable[[object], bool]] = {  # younger than some files
    "interpolation": lambda value: value in INTERPOLATIONS,
    "class_names": _are_names,
    "top1": lambda value: _is_number(value, -1e-9) and value <= 1,  # type: ignore[operator]
}
