"""One writer at a time: a second start is told who has the lock, and a dead process has none."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dfkd_fast.errors import UserError
from dfkd_fast.files.locks import lock_file

HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(handle, fcntl.LOCK_EX)
os.write(handle, f"{os.getpid()} on elsewhere".encode())
print("held", flush=True)
sys.stdin.read()
"""


def test_who_has_it_is_named_and_a_killed_process_has_it_no_more(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(UserError) as refusal:
            lock_file(file, "--run-dir", "is there")
        assert str(refusal.value) == f"--run-dir {file}: process {holder.pid} on elsewhere is there"
        holder.kill()
        holder.wait()
        os.close(lock_file(file, "--run-dir", "is there"))
    assert file.read_text() == f"{os.getpid()} on {platform.node()}\n"


def test_a_lock_that_its_owner_deletes_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, flock, seen = tmp_path / "lock", fcntl.flock, []

    def deleted_meanwhile(handle: int, how: int) -> None:
        flock(handle, how)
        if not seen:
            file.unlink()
        seen.append(handle)

    monkeypatch.setattr(fcntl, "flock", deleted_meanwhile)
    handle = lock_file(file, "x", "is there")
    assert len(seen) == 2
    assert os.path.samestat(os.fstat(handle), file.stat())
    os.close(handle)


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    os.close(lock_file(tmp_path / "lock", "--run-dir", "is there"))
    expected = f"--run-dir {tmp_path / 'lock'}: no locks on this file system (No locks available); "
    assert capsys.readouterr().out.startswith(expected)
