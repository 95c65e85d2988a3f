"""Detect the format of a weights file, and replace the objects in it that are not tensors by inert shells."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np


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


_NUMBERS = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} - {"f1"}


class Shell:
    """Stands for a harmless object that no one needs: takes everything, keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Shell:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class Kind(Shell):
    """Stands for a numpy dtype: keeps what it is called, `f8`, and in which order its bytes are."""

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.name = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        self.order: Literal["<", ">", "="] = "="

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


def number(kind: object = None, content: object = b"") -> float | Shell:
    """A numpy scalar's value, of a plain number; else a shell, which stands for it."""
    if isinstance(kind, Kind) and kind.name in _NUMBERS and isinstance(content, bytes):
        plain = np.dtype(kind.name).newbyteorder(kind.order)
        if len(content) == plain.itemsize:
            return float(np.frombuffer(content, plain)[0])
    return Shell()


_CORES = ("core", "_core")
SHELLS: tuple[tuple[Callable[..., Any], str], ...] = (
    *((Shell, name) for name in ("argparse.Namespace", "types.SimpleNamespace", "numpy.ndarray")),
    (Kind, "numpy.dtype"),
    *((number, f"numpy.{core}.multiarray.scalar") for core in _CORES),
    *((Shell, f"numpy.{core}.multiarray._reconstruct") for core in _CORES),
    *((Shell, f"pathlib.{name}") for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
    *((Shell, f"pathlib._local.{name}") for name in ("PosixPath", "WindowsPath")),
)
"""what stands for which class, for torch's unpickler of tensors alone"""
