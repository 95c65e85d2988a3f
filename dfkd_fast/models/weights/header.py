"""The header of a network that dfkd-fast writes: what it is, and checksums; both are checked when one is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.errors import UserError
from dfkd_fast.files.digests import crc_of_json, crc_of_tensor
from dfkd_fast.models.info import INTERPOLATIONS

HEADER = "dfkd_fast"
"""entry of a safetensors header that holds a network's ModelInfo as JSON, and the seal of both"""
SEAL = "seal"
"""key of that table: format, a checksum of the rest of the table and one of every tensor"""
FORMAT = 1


def sealed_header(tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> dict[str, str]:
    """The header entry of a network: what it is, and what its file must be checked against. One entry, since
    safetensors writes several in any order.
    """
    known = {name: crc_of_tensor(name, value) for name, value in tensors.items()}
    return {HEADER: json.dumps({**info, SEAL: {"format": FORMAT, "header": _crc(info), "tensors": known}})}


def check_seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, what: str) -> None:
    """Raise UserError, which begins with `what`, for a file that is not as it was written, or of a newer format.

    A file without a seal passes: others wrote it, or a dfkd-fast of before there were any. What the rest of the entry
    must be is `read_header`'s.
    """
    try:
        info = json.loads(metadata.get(HEADER, "{}"))
    except (ValueError, RecursionError):
        return
    if not isinstance(info, dict) or SEAL not in info:
        return
    try:
        seal = info.pop(SEAL)
        number, header, known = seal["format"], seal.get("header"), dict(seal.get("tensors", {}))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{what}: damaged (the checksums in its header cannot be read); take another copy") from None
    # the checksums leave the number out: where they fit a table of format 1, it is the number that is damaged, so that
    # those of a newer format must not fit so
    if isinstance(number, int) and number > FORMAT and header != _crc(info):
        raise UserError(f"{what}: format {number}, of a newer dfkd-fast; this one reads up to {FORMAT}: use that one")
    if number != FORMAT or header != _crc(info):
        raise UserError(f"{what}: damaged in its header (the checksum does not fit); take another copy")
    for name in sorted(known.keys() | tensors.keys()):
        if name not in tensors or crc_of_tensor(name, tensors[name]) != known.get(name):
            raise UserError(f"{what}: damaged at {name} (its checksum does not fit); take another copy")


def _crc(info: Mapping[str, Any]) -> int:
    return crc_of_json(json.loads(json.dumps(info)))  # as it will be read


_MOST = {"num_classes": 1_000_000, "in_chans": 1024}
_LARGEST_SIDE = 16_384
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
    table["image_size"] = ImageSize.of(table["image_size"])
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(most: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_size(value: object) -> bool:
    """One number for square images, or height and width."""
    is_side = _is_count(_LARGEST_SIDE)
    return is_side(value) or (isinstance(value, list) and len(value) == 2 and all(map(is_side, value)))


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
    "image_size": _is_size,
    "mean": _are_numbers(-_LARGEST),
    "std": _are_numbers(0),
}
_MAY: dict[str, Callable[[object], bool]] = {  # younger than some files
    "interpolation": lambda value: value in INTERPOLATIONS,
    "class_names": _are_names,
    "top1": lambda value: _is_number(value, -1e-9) and value <= 1,  # type: ignore[operator]
}
