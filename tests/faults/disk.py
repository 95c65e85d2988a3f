"""A model of a disk: plays a journal of file operations back to any moment, and says what a crash there leaves.

A kill leaves what the operations did so far. A power cut leaves less: of a file what was synced, of a folder the names
that it had when it was synced. As Linux file systems do, syncing a file also keeps a new file's name, and its folders'.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Literal

_HEAD = struct.Struct("=IIIIqq")

Crash = Literal["kill", "names lost", "names kept", "torn"]
"""what is left: all; what was synced; the names, and of each file what was synced; the names, and any of the writes"""


class Kind(IntEnum):
    """What an operation does; shim.c has the same list."""

    OPEN = 1
    WRITE = 2
    SYNC = 3
    RENAME = 4
    REMOVE = 5
    FOLDER = 6
    TRUNCATE = 7
    ALLOCATE = 8
    READ = 9
    FAILURE = 10


@dataclass(frozen=True)
class Operation:
    """One file operation; paths are relative to the root."""

    kind: Kind
    path: str
    second: str = ""
    emptied: bool = False
    offset: int = 0
    size: int = 0
    data: bytes = b""

    def __str__(self) -> str:
        what = f" {len(self.data)} bytes at {self.offset} of" if self.kind is Kind.WRITE else ""
        return f"{self.kind.name.lower()}{what} {self.path}{f' -> {self.second}' if self.second else ''}"


def read_journal(file: Path, root: Path) -> list[Operation]:
    """The operations that the fault layer has noted, in order; a record that was cut by a kill is left out."""
    content, at, found = file.read_bytes(), 0, []
    while at + _HEAD.size <= len(content):
        kind, first, second, emptied, offset, length = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        paths = [content[at : at + first].decode(), content[at + first : at + first + second].decode()]
        at += first + second
        data = content[at : at + length] if kind == Kind.WRITE else b""
        at += len(data)
        names = [path.removeprefix(str(root)).lstrip("/") for path in paths]
        gone = any(name.endswith(" (deleted)") for name in names)  # a file without a name leaves nothing
        found.append(
            Operation(Kind.FAILURE if gone else Kind(kind), names[0], names[1], bool(emptied), offset, length, data)
        )
    return found


def changes(operations: Sequence[Operation]) -> list[Operation]:
    """All but the reads, as the fault layer numbers them; some come to nothing."""
    return [operation for operation in operations if operation.kind is not Kind.READ]


@dataclass
class _File:
    now: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    """what a power cut leaves: the last synced content, with the sizes since, without the writes since"""
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def resize(self, size: int) -> None:
        for content in (self.now, self.synced):
            del content[size:]
        self.now.extend(bytes(size - len(self.now)))


@dataclass
class _Folder:
    now: dict[str, _File | _Folder] = field(default_factory=dict)
    synced: dict[str, _File | _Folder] = field(default_factory=dict)


class Disk:
    """The tree below the root; the root itself is there from the start, with what `start` holds, all of it synced."""

    def __init__(self, start: Path | None = None) -> None:
        self.root = _Folder()
        if start is not None:
            _load(self.root, start)

    def play(self, operations: Sequence[Operation]) -> Disk:
        """Apply operations in order."""
        for operation in operations:
            self._apply(operation)
        return self

    def half(self, operation: Operation) -> Disk:
        """Apply the first half of a write; nothing of any other operation."""
        if operation.kind is Kind.WRITE:
            self._write(operation.path, operation.offset, operation.data[: len(operation.data) // 2])
        return self

    def leave(self, target: Path, crash: Crash = "kill", seed: int = 0) -> None:
        """Write what a crash now leaves to a new folder."""
        draw = random.Random(seed)
        target.mkdir(parents=True)
        _unload(self.root, target, crash, draw)

    def _apply(self, operation: Operation) -> None:
        if operation.kind is Kind.FAILURE:
            return
        folder, name = self._place(operation.path)
        match operation.kind:
            case Kind.OPEN:
                found = folder.now.setdefault(name, _File())
                if operation.emptied and isinstance(found, _File):
                    found.resize(0)
            case Kind.WRITE:
                self._write(operation.path, operation.offset, operation.data)
            case Kind.SYNC:
                self._sync(operation.path)
            case Kind.RENAME:
                into, new = self._place(operation.second)
                into.now[new] = folder.now.pop(name)
            case Kind.REMOVE:
                del folder.now[name]
            case Kind.FOLDER:
                folder.now[name] = _Folder()
            case Kind.TRUNCATE:
                self._file(operation.path).resize(operation.size)
            case Kind.ALLOCATE:
                file = self._file(operation.path)
                file.resize(max(operation.size, len(file.now)))

    def _write(self, path: str, offset: int, data: bytes) -> None:
        file = self._file(path)
        file.now.extend(bytes(max(0, offset - len(file.now))))
        file.now[offset : offset + len(data)] = data
        file.pending.append((offset, data))

    def _sync(self, path: str) -> None:
        found = self.root
        for part in Path(path).parts:
            following = found.now[part]
            found.synced.setdefault(part, following)
            if isinstance(following, _File):
                following.synced, following.pending = bytearray(following.now), []
                return
            found = following
        found.synced = dict(found.now)

    def _place(self, path: str) -> tuple[_Folder, str]:
        found, (*folders, name) = self.root, Path(path).parts or ("",)
        for part in folders:
            following = found.now[part]
            assert isinstance(following, _Folder)
            found = following
        return found, name

    def _file(self, path: str) -> _File:
        folder, name = self._place(path)
        found = folder.now[name]
        assert isinstance(found, _File)
        return found


def contents(root: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content, and every folder with None."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in _walk(root)}


def _walk(root: Path) -> Iterator[Path]:
    yield from sorted(root.rglob("*"))


def _load(folder: _Folder, start: Path) -> None:
    for path in start.iterdir():
        if path.is_dir():
            child = _Folder()
            _load(child, path)
            folder.now[path.name] = child
        else:
            content = path.read_bytes()
            folder.now[path.name] = _File(bytearray(content), bytearray(content))
    folder.synced = dict(folder.now)


def _unload(folder: _Folder, target: Path, crash: Crash, draw: random.Random) -> None:
    for name, found in (folder.synced if crash == "names lost" else folder.now).items():
        path = target / name
        if isinstance(found, _Folder):
            path.mkdir()
            _unload(found, path, crash, draw)
            continue
        content = bytearray(found.now if crash == "kill" else found.synced)
        for offset, data in found.pending if crash == "torn" else ():
            if draw.random() < 0.5:
                content.extend(bytes(max(0, offset + len(data) - len(content))))
                content[offset : offset + len(data)] = data
        path.write_bytes(content)
