"""Hashes of content: SHA-256 says whether two things are the same wherever they lie, CRC-32 of each block finds where
a file is not as it was written.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 16
"""bytes that one CRC-32 stands for"""


def of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_json(value: Any) -> str:
    """SHA-256 of a value that JSON knows, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, dtypes, shapes and values; not their order, device or memory format."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(_described(name, tensors[name]))
        found.update(raw(tensors[name]))
    return found.hexdigest()


def crc_of_json(value: Any) -> int:
    """CRC-32 of a value that JSON knows, whatever the order of its keys."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def crc_of_tensor(name: str, value: Tensor) -> int:
    """CRC-32 of a tensor's name, dtype, shape and values."""
    return zlib.crc32(raw(value), zlib.crc32(_described(name, value)))


def raw(value: Tensor) -> memoryview:
    """The bytes of a tensor, row by row."""
    plain = value.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data


def seal(content: bytes) -> dict[str, Any]:
    """What `find_damage` must know of a file, as JSON: its size and a CRC-32 for each block of 64 KiB."""
    return {"bytes": len(content), "block": BLOCK, "crc": _blocks(content, BLOCK).tobytes().hex()}


def find_damage(content: bytes, sealed: Mapping[str, Any]) -> str | None:
    """Say where a file's bytes are not those that were sealed, None where they are."""
    if len(content) != sealed["bytes"]:
        return f"holds {len(content)} bytes of {sealed['bytes']}"
    size, expected = sealed["block"], array("I", bytes.fromhex(sealed["crc"]))
    for number, (found, known) in enumerate(zip(_blocks(content, size), expected, strict=True)):
        if found != known:
            return f"damaged within bytes {number * size} to {min((number + 1) * size, len(content))}"
    return None


def _blocks(content: bytes, size: int) -> array[int]:
    view = memoryview(content)
    return array("I", (zlib.crc32(view[start : start + size]) for start in range(0, len(content), size)))


def _described(name: str, value: Tensor) -> bytes:
    return f"{name} {value.dtype} {tuple(value.shape)}\n".encode()
