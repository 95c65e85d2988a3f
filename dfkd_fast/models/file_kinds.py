"""What a file is that was given for weights, by its first bytes: a checkpoint's format, or what it is instead."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import NamedTuple


class NotWeights(NamedTuple):
    """A file that holds no weights."""

    what: str
    """as in "is a web page" """
    hint: str
    """what to do about it"""


_ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
}
_OTHERS = {
    b"version https://git-lfs": NotWeights("a Git-LFS pointer", "fetch the file itself with git lfs pull"),
    b"\x89HDF": NotWeights("an HDF5 file (Keras)", "convert it to a state_dict"),
    b"\x93NUMPY": NotWeights("a NumPy array", "save the network's state_dict"),
}
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
_HEAD = 512
_TAR_MAGIC = slice(257, 262)


def not_weights(path: Path) -> NotWeights | None:
    """What a file is that is surely none of safetensors' or torch's; None where it may be. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return NotWeights("an empty file", "fetch it again")
    if head.lstrip().lower().startswith(_PAGES):
        return NotWeights("a web page", "the download went wrong: fetch the file itself")
    found = next((kind for start, kind in _OTHERS.items() if head.startswith(start)), None)
    archive = next((name for start, name in _ARCHIVES.items() if head.startswith(start)), None)
    if head[_TAR_MAGIC] == b"ustar":
        archive = "a tar archive"
    if archive is not None:
        found = NotWeights(archive, "unpack it first")
    return found or (_zip_without_weights(path) if head.startswith(b"PK") else None)


def is_safetensors(path: Path) -> bool:
    """Whether a file starts as safetensors files do, whatever it is called: the header's size, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size


def is_torch(path: Path) -> bool:
    """Whether a file starts as torch.save's do, new or old: a zip file, or a pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def _zip_without_weights(path: Path) -> NotWeights | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # torch says what is wrong with it
    if any(name.endswith("/constants.pkl") for name in names):
        return NotWeights("a TorchScript program", "save the network's state_dict instead")
    if any(name.endswith(".npy") for name in names):
        return NotWeights("a NumPy archive", "save the network's state_dict instead")
    # torch.save's own zip files have it, in whatever folder
    return None if any(name.endswith("data.pkl") for name in names) else NotWeights("a zip archive", "unpack it first")
