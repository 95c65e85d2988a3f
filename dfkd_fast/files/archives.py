"""Files in tar and zip archives: found with links followed, read in the archive's order; nothing is ever unpacked.

Python's tarfile takes what it cannot parse, and what follows the first end mark, for the end; here an archive is read
whole or refused. (webdataset's and torchvision's readers rest on the same module, and pass over links.)
"""

from __future__ import annotations

import contextlib
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dfkd_fast.errors import UserError
from dfkd_fast.files.pictures import MAX_BYTES
from dfkd_fast.messages.notes import printable

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_RATIO, FREE_BYTES = 300, 2**30
"""an archive may unpack to so many times its size, or to so many bytes if that is more: images hardly compress"""
_NO_ZIP = "not a readable zip"
_ENCRYPTED = 1  # of a zip member's flags
_MOST_LINKS = 40  # followed one after another, as in Linux
_DEEPEST = 64  # folders within folders


class InTar(NamedTuple):
    """Where a tar, unpacked, has a file's content."""

    offset: int
    size: int


Place = Path | InTar | str
"""where a file lies: in a folder, in a tar, or under a name in a zip"""


class Tree(NamedTuple):
    """The files below a folder, or in an archive, by their paths in it: as they are found when links are followed."""

    files: dict[str, Place]
    folders: set[str]


def tar_tree(path: Path, what: str) -> Tree:
    """The files of a tar. Raises UserError, beginning with `what`, for a damaged one and links to nothing."""
    with opened_tar(path, what) as tar:
        members = {_normal(member.name): member for member in tar_members(tar, path)}
    return _Links(members, what).tree()


def tar_sequence(path: Path, what: str) -> list[tuple[str, InTar]]:
    """The files of a tar in its order, a name perhaps twice. Raises UserError as `tar_tree`."""
    with opened_tar(path, what, "damaged") as tar:
        members = list(tar_members(tar, path))
    names = [_normal(member.name) for member in members]
    found = _Links(dict(zip(names, members, strict=True)), what).tree().files
    if hidden := found.keys() - set(names):
        raise UserError(f"{what}: {printable(min(hidden))} lies behind a link to a folder; unpack the tar")
    return [(name, place) for name in names if isinstance(place := found.get(name), InTar)]


def zip_tree(path: Path, what: str) -> Tree:
    """The files of a zip archive. Raises UserError as `tar_tree`, and for one that claims more than it can hold."""
    tree = Tree({}, set())
    with _refused(f"{what}: {_NO_ZIP}"), zipfile.ZipFile(path) as archive:
        claimed, limit = 0, _limit(path)
        for info in archive.infolist():
            claimed += info.file_size
            if claimed > limit:
                raise UserError(f"{what}: {_too_much(limit)}")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UserError(f"{what}: {printable(info.filename)} is a link in a zip; unpack it")
            if info.flag_bits & _ENCRYPTED:
                raise UserError(f"{what}: {printable(info.filename)} is encrypted; unpack it")
            name = _normal(info.filename)
            _add_folders(tree.folders, name if info.is_dir() else posixpath.dirname(name))
            if not info.is_dir():
                tree.files[name] = info.filename
    return tree


@contextlib.contextmanager
def opened_tar(path: Path, what: str, words: str = "not a readable tar") -> Iterator[tarfile.TarFile]:
    """A tar for reading; whatever is wrong with it, now or while it is read, becomes a UserError."""
    with _refused(f"{what}: {words}"), tarfile.open(path, encoding="utf-8") as tar:
        yield tar


@contextlib.contextmanager
def _refused(words: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged archives make their readers fail in any way
        reason = (str(error).partition("\n")[0] or type(error).__name__).rstrip(":")
        raise UserError(f"{words} ({printable(reason)})") from error


def tar_members(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """All headers of a tar in their order. Raises ReadError where it ends early or cannot be what it says."""
    limit, before = _limit(path), -1
    while (member := tar.next()) is not None:
        if member.offset <= before or member.size < 0:
            raise tarfile.ReadError("its members overlap")
        before = member.offset
        if not member.issparse() and member.offset_data + member.size > limit:
            raise tarfile.ReadError(_too_much(limit))
        yield member
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends early")
    read = 0
    while rest := tar.fileobj.read(2**20):
        if rest.count(0) != len(rest):
            raise tarfile.ReadError("more follows behind its end: tars written one after another; unpack them")
        read += len(rest)
        if read > limit:
            raise tarfile.ReadError(_too_much(limit))


def _limit(path: Path) -> int:
    """The bytes that an archive may unpack to."""
    return max(MAX_RATIO * path.stat().st_size, FREE_BYTES)


def _too_much(limit: int) -> str:
    return f"it claims more than {limit:,} bytes, {MAX_RATIO} times what it has"


def place_in_tar(member: tarfile.TarInfo, what: str) -> InTar:
    """Where a regular file's content lies. Raises UserError for a sparse one, whose content is scattered."""
    if member.issparse():
        raise UserError(f"{what}: {printable(member.name)} is stored with holes (sparse); unpack it")
    return InTar(member.offset_data, member.size)


def read_places(source: Path, places: Sequence[Place], what: str) -> Iterator[tuple[int, bytes | Path]]:
    """Position in `places` and content of each file, a file of a folder as its path; archives from front to back.

    Raises UserError, beginning with `what`, where an archive cannot be read and for a file of more than `MAX_BYTES`.
    """
    in_tar = sorted((place, position) for position, place in enumerate(places) if isinstance(place, InTar))
    yield from ((position, place) for position, place in enumerate(places) if isinstance(place, Path))
    if in_tar:
        with opened_tar(source, what) as tar:
            assert tar.fileobj is not None
            known: tuple[InTar | None, bytes] = (None, b"")  # several names of one file follow each other
            for place, position in in_tar:
                if place != known[0]:
                    known = place, _read_at(tar.fileobj, place, what)
                yield position, known[1]
    if places and isinstance(places[0], str):
        with _refused(f"{what}: {_NO_ZIP}"), zipfile.ZipFile(source) as archive:
            for position, name in enumerate(places):
                yield position, read_zipped(archive, str(name), what)


def read_zipped(archive: zipfile.ZipFile, name: str, what: str) -> bytes:
    """A file of a zip. Raises UserError for a large one, also where the archive lies about its size."""
    check_size(archive.getinfo(name).file_size, f"{what}: {printable(name)}")
    return archive.read(name)


def check_size(size: int, what: str) -> None:
    """Raise UserError where a file is larger than is read."""
    if size > MAX_BYTES:
        raise UserError(f"{what}: {size:,} bytes; at most {MAX_BYTES:,} are read")


def _read_at(file: Any, place: InTar, what: str) -> bytes:
    check_size(place.size, what)
    file.seek(place.offset)
    return file.read(place.size)


def _normal(name: str) -> str:
    return posixpath.normpath(name.lstrip("/"))


def _add_folders(folders: set[str], name: str) -> None:
    while name not in ("", ".") and name not in folders:
        folders.add(name)
        name = posixpath.dirname(name)


class _Links:
    """The members of a tar as a file system shows them: links of either kind lead to what they name within the tar."""

    def __init__(self, members: dict[str, tarfile.TarInfo], what: str) -> None:
        self._members, self._what = members, what
        self._children: dict[str, set[str]] = {"": set()}
        for name, member in members.items():
            if member.isdir():
                self._children.setdefault("" if name == "." else name, set())
            while name not in ("", "."):
                above, name = posixpath.dirname(name), posixpath.basename(name)
                self._children.setdefault(above, set()).add(name)
                name = above

    def tree(self) -> Tree:
        """All files and folders."""
        tree = Tree({}, set())
        self._walk("", "", ("",), tree)
        return tree

    def _walk(self, shown: str, actual: str, above: tuple[str, ...], tree: Tree) -> None:
        for child in sorted(self._children[actual]):
            name = posixpath.join(shown, child)
            target = self._target(posixpath.join(actual, child), name)
            member = self._members.get(target)
            if target in self._children:
                if target in above or len(above) > _DEEPEST:
                    raise UserError(f"{self._what}: {printable(name)} lies in itself, or too deep; unpack the tar")
                tree.folders.add(name)
                self._walk(name, target, (*above, target), tree)
            elif member is not None and member.isreg():
                tree.files[name] = place_in_tar(member, self._what)
            elif member is None:
                raise UserError(f"{self._what}: {printable(name)} is a link to {printable(target)}, not in the tar")

    def _target(self, name: str, shown: str) -> str:
        """The path, free of links, of what `name` leads to."""
        for _ in range(_MOST_LINKS):
            parts = name.split("/")
            for end in range(1, len(parts) + 1):
                above = "/".join(parts[:end])
                member = self._members.get(above)
                if member is not None and (member.issym() or member.islnk()):
                    base = posixpath.dirname(above) if member.issym() else ""
                    link = posixpath.join(base, member.linkname)
                    name = posixpath.normpath(posixpath.join(link, *parts[end:]))
                    break
            else:
                return name
        raise UserError(f"{self._what}: {printable(shown)} is a link that leads round in a circle")


def is_uncompressed_tar(path: Path) -> bool:
    """Whether a tar's files can be read in any order at no cost."""
    with contextlib.suppress(tarfile.TarError, OSError), tarfile.open(path, "r:"):
        return True
    return False
