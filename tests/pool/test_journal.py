"""The journal: what was flushed is there again, what no checkpoint has is dropped."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest
import torch
from written import held, journal, records, write

from dfkd_fast.errors import UserError
from dfkd_fast.pool.disk import layout
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.disk.layout import GRAIN
from dfkd_fast.pool.disk.verify import find_damage, repair


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 1)  # one grain each


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
        with journal(tmp_path) as second, pytest.raises(UserError, match=rf"process {os.getpid()} on \S+ is writing"):
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
