"""Checksums in the header of the networks that dfkd-fast writes, and their check when one is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dfkd_fast.digests import crc_of_json, crc_of_tensor
from dfkd_fast.errors import UserError

HEADER = "dfkd_fast"
"""entry of a safetensors header that holds a network's ModelInfo as JSON"""
SEAL = "dfkd_fast.seal"
"""entry with a checksum of that text and of every tensor, as JSON"""
FORMAT = 1


def sealed_header(tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> dict[str, str]:
    """The header entries of a network: what it is, and what its file must be checked against."""
    text = json.dumps(info)
    seal: dict[str, Any] = {"format": FORMAT, "header": crc_of_json(text)}
    seal["tensors"] = {name: crc_of_tensor(name, value) for name, value in tensors.items()}
    return {HEADER: text, SEAL: json.dumps(seal)}


def check_seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, what: str) -> None:
    """Raise UserError, which begins with `what`, for a file that is not as it was written, or of a newer format.

    A file without a seal passes: others wrote it, or a dfkd-fast of before there were any.
    """
    if SEAL not in metadata:
        return
    try:
        seal = json.loads(metadata[SEAL])
        number, header, known = seal["format"], seal.get("header"), dict(seal.get("tensors", {}))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{what}: damaged (the checksums in its header cannot be read); take another copy") from None
    if isinstance(number, int) and number > FORMAT:
        raise UserError(f"{what}: format {number}, of a newer dfkd-fast; this one reads up to {FORMAT}: use that one")
    if header != crc_of_json(metadata.get(HEADER, "")):
        raise UserError(f"{what}: damaged in its header (the checksum does not fit); take another copy")
    for name in sorted(known.keys() | tensors.keys()):
        if name not in tensors or crc_of_tensor(name, tensors[name]) != known.get(name):
            raise UserError(f"{what}: damaged at {name} (its checksum does not fit); take another copy")
