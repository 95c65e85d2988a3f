"""The files below a folder, links followed, and which of them are pictures; what is passed over is named."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dfkd_fast.errors import UserError
from dfkd_fast.files.archives import TAR_SUFFIXES, Tree, tar_tree, zip_tree
from dfkd_fast.messages.notes import note, printable

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "@__thumb", "#recycle", "$RECYCLE.BIN"})
_ABOUT = frozenset({".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".db", ".ini", ".log"})
"""files that may stand beside pictures and are none"""
_DEEPEST = 64


def read_tree(source: Path, what: str) -> Tree:
    """The files of a folder, tar or zip. Raises UserError, beginning with `what`, for what cannot be read whole."""
    if source.is_dir():
        return folder_tree(source, what)
    return zip_tree(source, what) if source.suffix.lower() == ".zip" else tar_tree(source, what)


def folder_tree(root: Path, what: str) -> Tree:
    """The files of a folder, hidden folders apart. Raises UserError for links to nothing or in a circle."""
    tree = Tree({}, set())
    _walk(root, "", (_identity(root, what),), what, tree)
    return tree


def pictures(tree: Tree, what: str) -> list[str]:
    """The names of pictures in a tree; says what else was passed over: other files and what systems leave behind."""
    found: list[str] = []
    passed: Counter[str] = Counter()
    for name in tree.files:
        kind = _kind(name)
        if kind is None:
            found.append(name)
        elif kind:
            passed[kind] += 1
    if passed:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(passed.items())[:8])
        note(f"{printable(what)}: passed over {printable(counts)}")
    return found


def contents_of(tree: Tree, folder: str) -> str:
    """What a folder without pictures holds, in a few words."""
    inside = [name for name in tree.files if name.startswith(f"{folder}/")]
    kinds = Counter(suffix_of(name) or "nameless" for name in inside if not is_hidden(name))
    return printable(", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "empty")


def is_hidden(name: str) -> bool:
    """Whether a path is one that people do not see, or that a system has made for itself."""
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in name.split("/"))


def suffix_of(name: str) -> str:
    """How a file's name ends, in lower case; empty where it has no ending."""
    return posixpath.splitext(name)[1].lower()


def class_name(folder: str) -> str:
    """What a class folder stands for: composed (NFC) text, bytes that are no UTF-8 as `\\\\xe9`."""
    return unicodedata.normalize("NFC", printable(folder))


def is_tar(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(TAR_SUFFIXES)


def _kind(name: str) -> str | None:
    """None for a picture, "" for what needs no words, else what is passed over."""
    if is_hidden(name):
        parts = name.split("/")
        if any(part.startswith("._") for part in parts):
            return "AppleDouble files (._*)"
        return next((f"files in {part}" for part in parts if part in _SYSTEM_FOLDERS), "")
    suffix = suffix_of(name)
    if suffix in PICTURE_SUFFIXES:
        return None
    return "" if suffix in _ABOUT or not suffix else f"{suffix} files"


def _walk(folder: Path, shown: str, above: tuple[object, ...], what: str, tree: Tree) -> None:
    for entry in _listed(folder, what):
        name = f"{shown}/{entry.name}" if shown else entry.name
        if entry.name.startswith(".") and not entry.name.startswith("._"):
            continue
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:  # a link that leads round in a circle
            raise UserError(f"{what}: {printable(name)} cannot be read ({error.strerror})") from error
        if is_folder:
            here = _identity(folder / entry.name, what)
            if here in above or len(above) > _DEEPEST:
                raise UserError(f"{what}: {printable(name)} lies in itself, or too deep; remove that link or folder")
            tree.folders.add(name)
            _walk(folder / entry.name, name, (*above, here), what, tree)
        elif is_file:
            tree.files[name] = folder / entry.name
        elif _kind(name) != "" or not suffix_of(name):
            raise UserError(f"{what}: {printable(name)} is a link to nothing, or no file; remove it")


def _listed(folder: Path, what: str) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{what}: {printable(folder)} cannot be read ({error.strerror})") from error


def _identity(folder: Path, what: str) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise UserError(f"{what}: {printable(folder)} cannot be read ({error.strerror})") from error
    return status.st_dev, status.st_ino
