"""Small files appear whole or not at all, with the user's permissions, and nothing else writes any."""

from __future__ import annotations

import ast
import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from dfkd_fast.files import write as files
from dfkd_fast.files.write import append_line, drop_folder, make_folder, sweep, write_file, write_folder

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dfkd_fast"

ELSEWHERE = {
    "pool/exchange/exports.py": "images for others, in a hidden folder that files/write.py syncs and renames",
    "deploy/export.py": "beside the network, in the same hidden folder",
    "deploy/formats.py": "the network, into that folder, or a buffer",
    "deploy/image_sets.py": "images for others, in such a folder, too",
    "pool/disk/journal.py": "segments of images: appended, synced by `flush`, found by checksum",
    "pool/disk/verify.py": "gives a segment its full length again",
    "files/locks.py": "the lock's owner, which nothing depends on",
    "benchmark/methods.py": "draws into memory",
    "cli/main.py": "opens the null device for reading and writing",
    "data/decoder_dali.py": "writes an image into memory",
    "reporting/visualize.py": "draws into memory",
    "models/int8_answers.py": "models for onnxruntime's tools, in a temporary folder",
}
"""what writes beside `files/write.py`, and why it may"""

FOLDERS = {
    "files/cache.py": "a stand-in in the system's temporary folder, for this user alone",
    "device/compilation.py": "caches that nothing is lost with, for this user alone",
    "pool/exchange/exports.py": "folders within the hidden folder of an export",
    "deploy/image_sets.py": "the same of images without a student",
    "training/teachers/state.py": "of a training that is over, or has kept nothing",
}
"""what makes or deletes whole folders beside `files/write.py`, and why it may"""

WRITES = {
    *("write_text", "write_bytes", "save_file", "savefig", "tofile", "savez", "savez_compressed", "pwrite"),
    *("ftruncate", "NamedTemporaryFile", "mkstemp", "fdopen", "symlink_to", "hardlink_to", "extractall"),
}
OF_MODULES = {
    *("os.write", "os.truncate", "os.replace", "os.rename", "os.link", "os.symlink", "json.dump"),
    *("shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copyfileobj", "shutil.copytree", "shutil.move"),
}
OWN_SAVES = {"self", "self.state", "self.keeper", "manifest"}
"""whose `save` is one of ours, which is searched itself; any other is a library's: torch, numpy, an image"""


def writing_calls(source: str) -> list[str]:
    """Calls that may write a file: by name, or `open` in a mode that writes, or with flags that do."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        words = [ast.unparse(each) for each in (*node.args, *(keyword.value for keyword in node.keywords))]
        modes = [word.strip("\"'") for word in words if word[:1] in "\"'"]
        opens = name.rpartition(".")[2] == "open" and any(set(mode) & set("wax+") and len(mode) < 4 for mode in modes)
        opens |= name == "os.open" and any("O_RDWR" in word or "O_WRONLY" in word for word in words)
        opens |= name == "zipfile.ZipFile" and "w" in modes
        owner, _, verb = name.rpartition(".")
        renames = verb in ("rename", "replace") and bool(owner) and len(node.args) == 1 and not node.keywords
        saves = verb == "save" and bool(owner) and owner not in OWN_SAVES
        if opens or renames or saves or name in OF_MODULES or verb in WRITES:
            found.append(f"{node.lineno}: {name}")
    return found


def test_nothing_else_writes() -> None:
    for place, path in sources():
        calls = writing_calls(path.read_text())
        assert bool(calls) == (place in ELSEWHERE or place == "files/write.py"), (place, calls)


def test_nothing_else_makes_or_drops_folders() -> None:
    """Or their names are not synced, and a kill halfway leaves a part under its name."""
    verbs = {"mkdir", "makedirs", "rmtree", "removedirs"}
    for place, path in sources():
        names = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        calls = [name for name in names if name.rpartition(".")[2] in verbs]
        assert bool(calls) == (place in FOLDERS or place == "files/write.py"), (place, calls)


def sources() -> list[tuple[str, Path]]:
    """The project's files with the names that the lists above have them by."""
    ours = [(str(path.relative_to(PACKAGE)), path) for path in sorted(PACKAGE.rglob("*.py"))]
    return ours + [(str(path.relative_to(ROOT)), path) for path in sorted((ROOT / "kernels").rglob("*.py"))]


def test_a_file_written_in_places_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "rows", os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda handle, data, offset: write(handle, data[:3], offset)
    )  # as a full disk may
    (tmp_path / ".rows.1-00000000.partial").write_bytes(b"left by a kill")
    (tmp_path / ".other.1-00000000.partial").write_bytes(b"of another file")
    with files.placed_file(path) as place:
        place(b"world", 6)
        place(b"hello ", 0)
        assert not path.exists()
    assert path.read_bytes() == b"hello world"
    with suppress(KeyError), files.placed_file(path) as place:
        place(b"HELLO", 0)
        raise KeyError
    assert path.read_bytes() == b"hello world"
    assert sorted(os.listdir(tmp_path)) == [".other.1-00000000.partial", "rows"]


@pytest.mark.parametrize(
    "text",
    [
        "path.write_text('x')",
        "open(path, 'w')",
        "path.open(mode='ab')",
        "np.save(f, x)",
        "torch.save(x, f)",
        "save_file(x, f)",
        "os.open(path, os.O_RDWR | os.O_CREAT)",
        "path.rename(target)",
        "path.with_suffix('.x').replace(target)",
        "shutil.copy(path, target)",
        "shutil.move(path, target)",
        "image.save(path)",
        "np.savez_compressed(path, x=x)",
        "tempfile.NamedTemporaryFile()",
        "os.fdopen(handle, mode)",
    ],
)
def test_the_search_finds(text: str) -> None:
    assert writing_calls(text)


@pytest.mark.parametrize("text", ["text.replace('a', 'b')", "replace(config, seed=1)", "self.keeper.save(x)"])
def test_the_search_leaves_others_alone(text: str) -> None:
    assert not writing_calls(text)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_what_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_file(tmp_path / "x", "text")
        append_line(tmp_path / "lines", "text")
        write_folder(tmp_path / "folder", {"x": b"1"})
    finally:
        os.umask(before)
    for name, most in (("x", 0o666), ("lines", 0o666), ("folder", 0o777), ("folder/x", 0o666)):
        assert (tmp_path / name).stat().st_mode & 0o777 == most & ~umask


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    write_file(tmp_path / "x", "old")
    write_folder(tmp_path / "folder", {"a": "old", "b": "old"})

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    owner = Path if step == "replace" else os
    monkeypatch.setattr(owner, step, fails)
    with pytest.raises(OSError, match="Input/output"):
        write_file(tmp_path / "x", "new")
    if step != "replace":
        with pytest.raises(OSError, match="Input/output"):
            write_folder(tmp_path / "folder", {"a": "new"})
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        *("folder", "folder/a", "folder/b", "x")
    ]
    assert (tmp_path / "x").read_text() == (tmp_path / "folder" / "b").read_text() == "old"


def test_the_file_is_synced_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{handle}")).suffix)
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", lambda path, to: seen.append("rename") or replace(path, to))
    (tmp_path / "in.folder").mkdir()
    write_file(tmp_path / "in.folder" / "x", "text")
    assert seen == [".partial", "rename", ".folder"]


def test_the_names_of_new_folders_are_synced_from_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut takes a folder with all that was synced in it."""
    seen: list[str] = []
    monkeypatch.setattr(files, "sync_folder", lambda folder: seen.append(str(folder.relative_to(tmp_path))))
    make_folder(tmp_path / "a" / "b" / "c")
    assert seen == [".", "a", "a/b"]
    make_folder(tmp_path / "a" / "b" / "c")
    assert len(seen) == 3
    write_folder(tmp_path / "d" / "e", {"x": "1"})
    assert seen[3] == "."


def test_what_killed_writers_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "x", "text")
    with monkeypatch.context() as patched:  # as if the process ended here
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        patched.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        patched.setattr(files, "sync_folder", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path / "folder", {"x": "1"})
    (tmp_path / "other").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        drop_folder(tmp_path / "other")
    assert len(list(tmp_path.iterdir())) == 3
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
