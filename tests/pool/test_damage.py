"""Damage: named with its file, never read, and a repair drops that and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from written import held, journal, records, write

from dfkd_fast.errors import UserError
from dfkd_fast.files.digests import crc_of_json
from dfkd_fast.pool.disk import layout
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.disk.layout import BLOCK, GRAIN
from dfkd_fast.pool.disk.manifest import load_manifest
from dfkd_fast.pool.disk.verify import find_damage, merge_damage, repair


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 1)  # one grain each


def flip(file: Path, offset: int) -> None:
    with open(file, "r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 16]))


def seal(file: Path, table: dict[str, object]) -> None:
    """Write a manifest with a checksum that fits."""
    body = {key: value for key, value in table.items() if key not in ("magic", "crc")}
    file.write_text(json.dumps(table | {"crc": crc_of_json(body)}))


SEGMENT = "segment-000001.bin"
DAMAGE = {
    "flipped image byte": (lambda folder: flip(folder / SEGMENT, 12 * 300 + 5), "the checksum of its images", BLOCK),
    "flipped label": (lambda folder: flip(folder / SEGMENT, 12 * GRAIN + 8 * 400), "the checksum of its labels", BLOCK),
    "cut short": (lambda folder: os.truncate(folder / SEGMENT, GRAIN * 28 - 1), "the file is cut short", BLOCK),
    "no segment": (lambda folder: (folder / SEGMENT).unlink(), "cannot be read: No such file", GRAIN),
    "all of it cut": (lambda folder: os.truncate(folder / SEGMENT, 0), "the file is cut short", GRAIN),
}


@pytest.mark.parametrize(("harm", "words", "lost"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_and_repair_drops_only_that(tmp_path: Path, harm: object, words: str, lost: int) -> None:
    count = 3 * GRAIN - 100
    write(tmp_path, count)
    before = held(tmp_path)
    harm(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=f"{SEGMENT}: {words}.*verify --repair"):
        held(tmp_path)
    assert sum(found.images for found in find_damage(tmp_path)) == lost
    assert repair(tmp_path).images == lost
    after = held(tmp_path)
    assert len(after) == count - lost
    assert len(PoolFiles(tmp_path)) == count - lost
    dropped = sorted(set(before) - set(after))
    assert dropped[0] % BLOCK == 0
    assert dropped == list(range(dropped[0], dropped[0] + lost))
    assert not find_damage(tmp_path)
    with journal(tmp_path) as made:  # the old checkpoint still resumes, and the pool still grows
        made.restore(count)
        made.append(records(90_000, 400))
        made.flush()
    assert held(tmp_path) == [*after, *range(90_000, 90_400)]


def test_a_damaged_end_is_dropped_whole_and_not_written_to_again(tmp_path: Path) -> None:
    write(tmp_path, 1000)  # three blocks and 232 records
    flip(tmp_path / "segment-000000.bin", 12 * 999)
    assert repair(tmp_path).images == 232
    for kept in (1000, 900):
        with journal(tmp_path) as made:
            made.restore(kept)
            made.append(records(5000, 10))
            assert made.flush() == 1024 + 10
        assert held(tmp_path) == [*range(768), *range(5000, 5010)]


MANIFESTS = {
    "magic": ({"magic": "something else"}, "not a pool's manifest"),
    "version": ({"version": 3}, "damaged"),
    "older version": ({"version": 1}, "damaged"),
    "version that is none": ({"version": [2]}, "damaged"),
    "count": ({"count": 999}, "damaged"),
    "shape": ({"fields": {"images": ["uint8", [2, 2, 4]]}}, "damaged"),
}


@pytest.mark.parametrize(("change", "words"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_manifest_that_was_changed(tmp_path: Path, change: dict[str, object], words: str) -> None:
    write(tmp_path, 1000)
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=f"manifest.json: {words}"):
        PoolFiles(tmp_path)


BROKEN: dict[str, Callable[[Path], object]] = {
    "damaged": lambda file: file.write_text("{"),
    "not a pool's manifest": lambda file: file.write_text("{}"),
    "is missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize(("words", "harm"), BROKEN.items(), ids=BROKEN.keys())
def test_a_damaged_manifest_is_repaired_from_its_copy(
    tmp_path: Path, words: str, harm: Callable[[Path], object]
) -> None:
    """Nothing that was flushed is lost by it."""
    with journal(tmp_path) as made:
        made.append(records(0, 700))
        made.flush()
        made.append(records(700, 700))
        made.flush()
    harm(tmp_path / "manifest.json")
    with pytest.raises(UserError, match=rf"manifest\.json: {words}.*verify --repair .* takes its copy"):
        PoolFiles(tmp_path)
    assert repair(tmp_path) == ([], True)
    assert held(tmp_path) == list(range(1400))
    assert repair(tmp_path) == ([], False)


def test_what_the_disk_refuses_to_read_is_damage(tmp_path: Path) -> None:
    """A bad sector, here a folder in the place of a file."""
    write(tmp_path, 700)
    (tmp_path / "segment-000000.bin").unlink()
    (tmp_path / "segment-000000.bin").mkdir()
    with pytest.raises(UserError, match=r"segment-000000\.bin: cannot be read: Is a directory .*--repair"):
        held(tmp_path)
    with pytest.raises(UserError, match=r"cannot be repaired \(.*segment-000000\.bin: Is a directory\)"):
        repair(tmp_path)


def test_a_manifest_without_a_whole_copy_is_the_end(tmp_path: Path) -> None:
    write(tmp_path, 700)
    for name in ("manifest.json", "manifest.copy.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(UserError, match=r"manifest\.copy\.json: not a pool's manifest; no copy is whole"):
        repair(tmp_path)


def test_a_pool_of_a_newer_version_is_not_repaired(tmp_path: Path) -> None:
    """It may be whole."""
    write(tmp_path, 700)
    file = tmp_path / "manifest.json"
    seal(file, json.loads(file.read_text()) | {"version": 3})
    before = file.read_bytes()
    with pytest.raises(UserError, match="version 3, this program reads up to 2; use the one that wrote it"):
        repair(tmp_path)
    assert file.read_bytes() == before


def test_a_pool_of_version_1_is_read_and_grows(tmp_path: Path) -> None:
    """Its checksum left the version out."""
    write(tmp_path, 700)
    for name in ("manifest.json", "manifest.copy.json"):
        file = tmp_path / name
        seal(file, {key: value for key, value in json.loads(file.read_text()).items() if key != "version"})
        file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 1}))
    assert held(tmp_path) == list(range(700))
    with journal(tmp_path) as made:
        made.restore(700)
        made.append(records(700, 100))
        made.flush()
    assert held(tmp_path) == list(range(800))
    assert json.loads((tmp_path / "manifest.json").read_text())["version"] == 2


def test_neighbours_that_suffer_alike_are_named_as_one(tmp_path: Path) -> None:
    write(tmp_path, 3 * GRAIN - 100)
    (tmp_path / SEGMENT).unlink()
    flip(tmp_path / "segment-000002.bin", 12 * 3 * BLOCK)
    missing, flipped = merge_damage(find_damage(tmp_path))
    assert f"{SEGMENT}: cannot be read: No such file or directory (images 4,096 to 8,191)" in str(missing.error())
    assert "(images 8,960 to 9,215)" in str(flipped.error())


def test_no_pool_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pool there \(it has no manifest\.json\)"):
        PoolFiles(tmp_path)


def test_what_a_writer_has_dropped_meanwhile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring releases a segment between the reading of its manifest and that of the file."""
    with journal(tmp_path, capacity=1000) as made:
        for first in range(0, 3 * GRAIN, GRAIN):
            made.append(records(first, GRAIN))
            count = made.flush()
        stale = load_manifest(tmp_path)
        made.release(count)
    flip(tmp_path / "segment-000002.bin", 12 * 300)
    manifests = iter([stale, load_manifest(tmp_path)])
    monkeypatch.setattr("dfkd_fast.pool.disk.files.load_manifest", lambda folder: next(manifests))
    assert [found.block for found in find_damage(tmp_path)] == [2 * GRAIN // BLOCK + 1]
