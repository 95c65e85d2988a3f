"""The files below a folder, links followed, and which of them are pictures; what is passed over is named."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dfkd_fast.archives import TAR_SUFFIXES, Tree, tar_tree, zip_tree
from dfkd_fast.errors import UserError
from dfkd_fast.notes import note, printable

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
    kinds = Counter(PurePosixPath(name).suffix.lower() or "nameless" for name in inside if not is_hidden(name))
    return printable(", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "empty")


def is_hidden(name: str) -> bool:
    """Whether a path is one that people do not see, or that a system has made for itself."""
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in PurePosixPath(name).parts)


def class_name(folder: str) -> str:
    """What a class folder stands for: composed (NFC) text, bytes that are no UTF-8 as `\\\\xe9`."""
    return unicodedata.normalize("NFC", printable(folder))


def is_tar(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(TAR_SUFFIXES)


def _kind(name: str) -> str | None:
    """None for a picture, "" for what needs no words, else what is passed over."""
    path = PurePosixPath(name)
    for part in path.parts:
        if part.startswith("._"):
            return "AppleDouble files (._*)"
        if part in _SYSTEM_FOLDERS:
            return f"files in {part}"
    suffix = path.suffix.lower()
    if is_hidden(name) or suffix in _ABOUT or not suffix:
        return ""
    return None if suffix in PICTURE_SUFFIXES else f"{suffix} files"


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
        elif _kind(name) != "" or not PurePosixPath(name).suffix:
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
