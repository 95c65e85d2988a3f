"""A run with damaged files, on a disk that refuses, or that somebody else writes: the same student, or one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import go_on, same, tiny

from dfkd_fast.cli.main import main
from dfkd_fast.config.sources import load_run
from dfkd_fast.errors import UserError
from dfkd_fast.files import write as files
from dfkd_fast.files.locks import lock_file
from dfkd_fast.training.checkpoints.checkpoint import checkpoints_in
from dfkd_fast.training.records.run_record import read_run_record
from dfkd_fast.training.train import train


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in item.items() if key not in ("seconds", "elapsed", "core_seconds")}
        for item in found
    ]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "unreadable"])
def test_a_damaged_checkpoint_is_named_and_the_older_one_taken(
    runs: Path, stopped: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    file = stopped / "checkpoints" / "00001-1-distillation" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flipped": bytes(content), "cut": bytes(content[:1000]), "unreadable": b""}[how])
    if how == "unreadable":
        file.unlink()
        file.mkdir()  # reading it is an error of the system
    go_on(stopped)
    told = [line for line in capsys.readouterr().out.splitlines() if str(file) in line or "resumed" in line]
    assert len(told) == 2
    assert told[0].startswith(f"{file}: ")
    assert told[1] == "resumed after synthesis of epoch 2; 1 phase is repeated"
    assert same(stopped, runs / "whole")
    assert lines(stopped) == lines(runs / "whole")
    assert len(checkpoints_in(stopped / "checkpoints")) == 2


def test_where_no_checkpoint_is_whole_one_line_says_so(stopped: Path) -> None:
    for file in (stopped / "checkpoints").glob("*/state.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    before = sorted(stopped.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint is whole .*state.safetensors: holds .*; .*or delete it"):
        go_on(stopped)
    assert sorted(stopped.rglob("*")) == before


def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = stopped / "checkpoints" / "00001-1-distillation" / "state.safetensors"
    newest.write_bytes(b"")
    config = load_run(stopped)
    train(replace(config, stop_after_epoch=3, checkpoint=replace(config.checkpoint, every=3)), resume=True)
    names = [path.name for path in checkpoints_in(stopped / "checkpoints")]
    assert names == ["00002-0-synthesis", "00002-1-distillation"]


@pytest.mark.parametrize(
    ("change", "kept", "says"),
    [
        (lambda text: text + '{"epoch": 2, "pha', None, False),
        (lambda text: text + text.splitlines(keepends=True)[-1].replace('"epoch": 1', '"epoch": 2'), None, False),
        (lambda text: text[:-30], -1, True),
        (lambda text: text.replace('"epoch": 0', '"epoch": \x000', 1), 0, True),
        (lambda text: "", ..., True),
    ],
    ids=["torn", "later", "cut", "damaged", "empty"],
)
def test_of_metrics_only_what_is_torn_is_cut(
    runs: Path,
    stopped: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[str], str],
    kept: Any,
    says: bool,
) -> None:
    """Every whole line stays, each stands once, and the clock goes on."""
    file = stopped / "metrics.jsonl"
    before, expected = lines(stopped), lines(runs / "whole")
    elapsed = json.loads(file.read_text().splitlines()[-1])["elapsed"]
    file.write_text(change(file.read_text()))
    go_on(stopped)
    lost = before if kept is ... else [] if kept is None else [before[kept]]
    assert lines(stopped) == [line for line in expected if line not in lost]
    assert (f"{file}: not as the run wrote it" in capsys.readouterr().out) == says
    assert json.loads(file.read_text().splitlines()[-1])["elapsed"] > elapsed
    assert same(stopped, runs / "whole")


def test_metrics_are_on_the_disk_before_the_checkpoint_that_follows(
    runs: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync = os.fsync

    def fsync(handle: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.lstrip(".").partition(".")[0])
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    go_on(stopped)
    phase = [name for name in seen if name in ("metrics", "state")]
    assert phase == ["metrics", "state", "state"] * 2


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_start_is_told_who_writes(runs: Path, tmp_path: Path, resume: bool) -> None:
    config = tiny("nayer", runs / "teacher.safetensors", tmp_path / "run")
    if resume:
        shutil.copytree(runs / "stopped", tmp_path / "run")
    else:
        (tmp_path / "run").mkdir()
    handle = lock_file(tmp_path / "run" / "lock", "x", "y")  # as another process would
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as refusal:
        train(config, resume=resume)
    assert str(refusal.value) == (
        f"--run-dir {tmp_path / 'run' / 'lock'}: process {os.getpid()} on {os.uname().nodename} is writing this run; "
        "let it end, or choose another folder"
    )
    assert sorted(tmp_path.rglob("*")) == before
    os.close(handle)


def test_the_lock_is_held_for_the_whole_run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From before the teacher is loaded; and of two starts the later one finds the earlier one's run."""
    from dfkd_fast.training import train as training

    config, refused, load = tiny("nayer", runs / "teacher.safetensors", tmp_path / "run"), [], training.load_teacher

    def start_again(*arguments: Any, **options: Any) -> Any:
        with pytest.raises(UserError, match="is writing this run"):
            train(config)
        refused.append(True)
        return load(*arguments, **options)

    monkeypatch.setattr(training, "load_teacher", start_again)
    train(replace(config, stop_after_epoch=1))
    assert refused
    with pytest.raises(UserError, match="holds a run already"):
        train(config)


def test_a_start_that_fails_leaves_no_folder(runs: Path, tmp_path: Path) -> None:
    config = tiny("nayer", runs / "teacher.safetensors", tmp_path / "runs" / "run")
    with pytest.raises(UserError):
        train(replace(config, teacher_weights=tmp_path / "absent.safetensors"))
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Let the n-th write, sync or rename of a small file fail, as the system would."""
    left, code = [0], [0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(code[0], os.strerror(code[0]), "a file")
            return call(*arguments)

        return run

    def arm(number: int, errno_: int) -> None:
        left[0], code[0] = number, errno_

    monkeypatch.setattr(files, "_write_all", counted(files._write_all))
    monkeypatch.setattr(files, "sync_file", counted(files.sync_file))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    return arm


@pytest.mark.parametrize(("code", "number"), [(errno.ENOSPC, 1), (errno.EACCES, 5), (errno.EROFS, 12), (errno.EIO, 20)])
def test_what_the_system_refuses_is_one_line_and_the_run_goes_on(
    runs: Path, stopped: Path, refusals: Callable[[int, int], None], code: int, number: int
) -> None:
    refusals(number, code)
    with pytest.raises(UserError) as refusal:
        go_on(stopped)
    assert os.strerror(code) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    go_on(stopped)
    assert same(stopped, runs / "whole")
    assert lines(stopped) == lines(runs / "whole")
    assert not list(stopped.rglob("*.partial"))


def test_a_refusal_names_folder_and_command(runs: Path, stopped: Path, refusals: Callable[[int, int], None]) -> None:
    refusals(1, errno.EACCES)
    with pytest.raises(UserError, match=rf"--run-dir {stopped}: .*Permission denied: a file.* --resume {stopped}"):
        go_on(stopped)


def test_a_refusal_while_moves_are_noted_is_one_line_too(
    runs: Path, stopped: Path, tmp_path: Path, refusals: Callable[[int, int], None]
) -> None:
    moved = Path(shutil.copy(runs / "teacher.safetensors", tmp_path / "moved.safetensors"))
    refusals(1, errno.ENOSPC)
    with pytest.raises(UserError, match=rf"no room to write .* --resume {stopped}"):
        train(replace(load_run(stopped), teacher_weights=moved), resume=True)


def test_run_json_is_checked_where_it_is_read_back(runs: Path, tmp_path: Path) -> None:
    """A flip anywhere in it is found; one of a newer format is refused by name, one of before formats is read."""
    written, file = (runs / "whole" / "run.json").read_bytes(), tmp_path / "run.json"
    file.write_bytes(written)
    record = read_run_record(file)
    assert record["complete"]
    for place in range(0, len(written), 7):
        changed = bytes([*written[:place], written[place] ^ 1, *written[place + 1 :]])
        file.write_bytes(changed)
        with suppress(ValueError):
            if json.loads(changed) == json.loads(written):  # a blank, or a digit beyond a float's last
                continue
        with pytest.raises(UserError, match=f"{file}: damaged"):
            read_run_record(file)
    file.write_text(json.dumps({**record, "format": 2}))
    with pytest.raises(UserError, match=rf"{file}: format 2, of a newer dfkd-fast"):
        read_run_record(file)
    before = {key: value for key, value in record.items() if key != "format"}
    file.write_text(json.dumps(before))
    assert read_run_record(file) == before


def test_readers_need_no_lock(stopped: Path, tmp_path: Path) -> None:
    """While another process writes the run and its pool."""
    handles = [lock_file(folder / "lock", "x", "y") for folder in (stopped, stopped / "pool")]
    pool = str(stopped / "pool")
    assert main(["pool", "info", pool]) == main(["pool", "export", pool, str(tmp_path / "images")]) == 0
    assert main(["train", "--resume", str(stopped)]) == 2
    for handle in handles:
        os.close(handle)
