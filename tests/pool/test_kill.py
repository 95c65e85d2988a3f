"""A writer that is killed at any moment leaves a pool that opens, verifies and holds all that `flush` had confirmed.

`make bench SUITE=kill` (`pytest tests/pool/test_kill.py --kills 200`) kills 200 times, the test-suite 24 times.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from dfkd_fast.pool.disk import layout
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.disk.layout import GRAIN
from dfkd_fast.pool.disk.verify import find_damage

RING = 3000
"""capacity of the ring: of a dozen segments that a run writes, two are in use"""


def contents(positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Records that say where they belong."""
    images = (positions[:, None, None, None] * 31 + torch.arange(48).view(4, 4, 3)).to(torch.uint8)
    return {"images": images, "labels": positions}


def write_until_killed(folder: Path, count: int, policy: str, seed: int, confirmed: Connection) -> None:
    """Append, flush and release at random, and tell what each `flush` has confirmed."""
    torch.set_num_threads(1)  # the parent's threads did not come along
    draw = random.Random(seed)
    journal = Journal(folder, capacity=RING if policy == "ring" else 10**9, replace=True)
    journal.restore(count)
    older = journal.count
    while True:
        for _ in range(draw.randrange(4)):
            journal.append(contents(torch.arange(journal.count, journal.count + draw.randrange(1, 600))))
        count = journal.flush()
        confirmed.send_bytes(count.to_bytes(8, "little"))
        if draw.random() < 0.3:
            journal.release(older)
            older = count


def kill_one(folder: Path, count: int, policy: str, seed: int) -> int:
    """Let a writer go on from `count`, kill it after a random time, and return the last count that it confirmed."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    writer = multiprocessing.get_context("fork").Process(
        target=write_until_killed, args=(folder, count, policy, seed, sender)
    )
    writer.start()
    sender.close()
    if seed % 4:  # else it is killed while it opens the pool, too
        assert receiver.poll(60), "nothing was confirmed in a minute"
    time.sleep(random.Random(seed).expovariate(1 / 0.03))
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert writer.exitcode == -signal.SIGKILL, "the writer failed by itself"
    while True:
        try:
            count = int.from_bytes(receiver.recv_bytes(), "little")
        except EOFError:
            return count


@pytest.mark.parametrize("policy", ["append", "ring"])
def test_nothing_that_flush_confirmed_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, policy: str
) -> None:
    kills = request.config.getoption("--kills", default=24)  # the option is known where this folder is asked for
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 1)  # one grain each, so that segments begin and end all the time
    count = 0
    for seed in range(-(-kills // 2)):
        count = kill_one(tmp_path, count, policy, seed)
        if not count:
            continue
        files = PoolFiles(tmp_path)
        assert files.manifest.count >= count
        assert not find_damage(tmp_path)
        first = files.manifest.first
        assert first <= max(0, count - RING if policy == "ring" else 0)
        start = max(first, count - 2 * GRAIN)
        seen = start
        for index, fields in files.read(start, count):
            assert index == seen
            seen += len(fields["labels"])
            for name, expected in contents(torch.arange(index, seen)).items():
                assert torch.equal(fields[name], expected)
        assert seen == count
    assert count > 0
