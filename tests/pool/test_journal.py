"""The journal: what was flushed is there again, what no checkpoint has is dropped, what is damaged is named."""

from __future__ import annotations

import json
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.pool import layout
from dfkd_fast.pool.files import PoolFiles
from dfkd_fast.pool.journal import Journal
from dfkd_fast.pool.layout import BLOCK, GRAIN
from dfkd_fast.pool.verify import find_damage, repair


def records(first: int, count: int) -> dict[str, Tensor]:
    return contents(torch.arange(first, first + count))


def contents(positions: Tensor) -> dict[str, Tensor]:
    """Records whose content says where they were written."""
    images = (positions[:, None, None, None] * 7 + torch.arange(12).view(2, 2, 3)).to(torch.uint8)
    return {"images": images, "labels": positions, "score": positions[:, None] / torch.tensor([2.0, 3.0])}


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 1)  # one grain each


@contextmanager
def journal(folder: Path, *, capacity: int = 10 * GRAIN, replace: bool = False) -> Iterator[Journal]:
    made = Journal(folder, capacity=capacity, replace=replace)
    try:
        yield made
    finally:
        made.close()


def write(folder: Path, count: int, batch: int = 1000, capacity: int = 10 * GRAIN) -> int:
    """A pool of `count` records, flushed once."""
    with journal(folder, capacity=capacity) as made:
        for first in range(0, count, batch):
            made.append(records(first, min(batch, count - first)))
        return made.flush()


def held(folder: Path, start: int = 0, stop: int = 1 << 40) -> list[int]:
    """Labels of all records, each record checked against what was written."""
    labels: list[int] = []
    for index, fields in PoolFiles(folder).read(start, stop):
        assert index == start + len(labels)
        labels += fields["labels"].tolist()
        for name, values in contents(fields["labels"]).items():
            assert torch.equal(fields[name], values), name
    return labels


def test_what_was_flushed_is_read_back_across_segments(tmp_path: Path) -> None:
    assert write(tmp_path, 2 * GRAIN + 300) == 2 * GRAIN + 300
    assert held(tmp_path) == list(range(2 * GRAIN + 300))
    assert held(tmp_path, 4000, 4500) == list(range(4000, 4500))
    assert len(PoolFiles(tmp_path)) == 2 * GRAIN + 300
    assert len(list(tmp_path.glob("segment-*"))) == 3
    assert not find_damage(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 255, 256, 700, GRAIN, GRAIN + 1, GRAIN + 500])
def test_restore_drops_what_came_later_and_appends_go_on_there(tmp_path: Path, kept: int) -> None:
    write(tmp_path, GRAIN + 500)
    with journal(tmp_path) as made:
        made.restore(kept)
        assert held(tmp_path) == list(range(kept))  # committed, before anything is overwritten
        made.append(records(50_000, 300))
        assert made.flush() == kept + 300
    assert held(tmp_path) == [*range(kept), *range(50_000, 50_300)]


def test_what_was_not_flushed_is_not_seen(tmp_path: Path) -> None:
    with journal(tmp_path) as made:
        made.append(records(0, 300))
        made.flush()
        made.append(records(300, 50))
        made.drain()
        assert held(tmp_path) == list(range(300))


def test_other_processes_may_read_while_one_writes(tmp_path: Path) -> None:
    """Whatever a reader finds committed is whole; it never sees a record half-written."""
    stop = threading.Event()

    def append() -> None:
        with journal(tmp_path) as made:
            while not stop.is_set():
                made.append(records(made.count, 130))
                made.flush()

    writer = threading.Thread(target=append)
    writer.start()
    try:
        seen: list[int] = []
        while len(seen) < 2000:
            if (tmp_path / "manifest.json").exists():
                now = held(tmp_path)
                assert now == list(range(len(now)))
                assert len(now) >= len(seen)
                seen = now
    finally:
        stop.set()
        writer.join()


def test_a_ring_releases_the_segments_that_no_checkpoint_needs(tmp_path: Path) -> None:
    with journal(tmp_path, capacity=1000) as made:
        counts = []
        for first in range(0, 5 * GRAIN, GRAIN):
            made.append(records(first, GRAIN))
            counts.append(made.flush())
        made.release(counts[-2])
        files = PoolFiles(tmp_path)
        assert files.manifest.first == 3 * GRAIN
        assert sorted(int(file.stem[-6:]) for file in tmp_path.glob("segment-*")) == [3, 4]
    with journal(tmp_path, capacity=1000) as made:
        made.restore(counts[-2])  # the older checkpoint's pool is still there
        assert held(tmp_path, counts[-2] - 1000) == list(range(counts[-2] - 1000, counts[-2]))


def test_an_empty_pool_restores_from_nothing(tmp_path: Path) -> None:
    with journal(tmp_path / "pool") as made:
        made.restore(0)
        assert made.count == 0
        assert made.flush() == 0


def test_a_pool_is_replaced_only_when_asked_to(tmp_path: Path) -> None:
    write(tmp_path, GRAIN + 1)
    with journal(tmp_path) as made, pytest.raises(UserError, match="holds a pool already"):
        made.append(records(0, 1))
    with journal(tmp_path, replace=True) as made:
        made.append(records(7, 2))
        made.flush()
    assert held(tmp_path) == [7, 8]
    assert len(list(tmp_path.glob("segment-*"))) == 1


def test_a_batch_of_other_fields_is_refused(tmp_path: Path) -> None:
    with journal(tmp_path) as made:
        made.append(records(0, 3))
        with pytest.raises(UserError, match="it holds images uint8"):
            made.append({"images": torch.zeros(1, 3, 3, 3, dtype=torch.uint8)})


def test_two_writers_at_once(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.append(records(0, 3))
        first.flush()
        with journal(tmp_path) as second, pytest.raises(UserError, match=f"process {os.getpid()} is writing"):
            second.restore(3)
        with pytest.raises(UserError, match="is writing"):
            repair(tmp_path)
        assert held(tmp_path) == [0, 1, 2]  # reading is free
    with journal(tmp_path) as second:
        second.restore(3)


def test_fewer_records_than_the_checkpoint_says(tmp_path: Path) -> None:
    write(tmp_path, 10)
    with (
        journal(tmp_path) as made,
        pytest.raises(UserError, match=r"manifest\.json: holds 10 images, the checkpoint has 11"),
    ):
        made.restore(11)


def flip(file: Path, offset: int) -> None:
    with open(file, "r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 16]))


SEGMENT = "segment-000001.bin"
DAMAGE = {
    "flipped image byte": (lambda folder: flip(folder / SEGMENT, 12 * 300 + 5), "the checksum of its images", BLOCK),
    "flipped label": (lambda folder: flip(folder / SEGMENT, 12 * GRAIN + 8 * 400), "the checksum of its labels", BLOCK),
    "cut short": (lambda folder: os.truncate(folder / SEGMENT, GRAIN * 28 - 1), "the file is cut short", BLOCK),
    "no segment": (lambda folder: (folder / SEGMENT).unlink(), "cannot be read: No such file", GRAIN),
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
    "version": ({"version": 2}, "version 2, this program reads 1"),
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


def test_a_damaged_manifest_is_repaired_from_the_one_before(tmp_path: Path) -> None:
    with journal(tmp_path) as made:
        made.append(records(0, 700))
        made.flush()
        made.append(records(700, 700))
        made.flush()
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: damaged .*verify --repair"):
        PoolFiles(tmp_path)
    assert repair(tmp_path) == ([], True)
    assert held(tmp_path) == list(range(700))


def test_no_pool_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pool there \(it has no manifest\.json\)"):
        PoolFiles(tmp_path)


def test_a_file_size_limit_is_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    with journal(tmp_path) as made:
        made.append(records(0, 500))
        made.flush()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            made.append(records(500, GRAIN))
            with pytest.raises(UserError, match=r"segment-00000\d\.bin: no room .*free space"):
                made.flush()
            with pytest.raises(UserError, match="no room"):
                made.append(records(0, 1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert held(tmp_path) == list(range(500))
    assert not find_damage(tmp_path)


def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    write(tmp_path, 300)
    os.chmod(tmp_path, 0o555)
    (tmp_path / "lock").chmod(0o444)
    root = os.geteuid() == 0
    try:
        if root:  # nothing is read-only for root
            for part in (tmp_path, *tmp_path.parents[:3]):
                part.chmod(part.stat().st_mode | 0o055)
            os.seteuid(65534)
        with (
            journal(tmp_path) as made,
            pytest.raises(UserError, match=r"cannot be written \(Permission denied\); choose"),
        ):
            made.restore(300)
        assert held(tmp_path) == list(range(300))  # reading needs no rights
    finally:
        if root:
            os.seteuid(0)
        os.chmod(tmp_path, 0o755)
