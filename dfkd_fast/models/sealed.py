"""Checksums in the header of the networks that dfkd-fast writes, and their check when one is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.files.digests import crc_of_json, crc_of_tensor

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
