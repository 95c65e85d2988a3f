"""A teacher of the cache is checked before it is used, made by one process at a time, and its training goes on where it
was stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfkd_fast.cli.main import main
from dfkd_fast.config.recipes import TeacherRecipe
from dfkd_fast.data.splits import ImageSet, load_split
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.files import digests
from dfkd_fast.models.factory import load_model
from dfkd_fast.training.checkpoints.checkpoint import load_network, save_network
from dfkd_fast.training.interrupt import Interrupted
from dfkd_fast.training.teachers import state as teacher_state
from dfkd_fast.training.teachers import train as teacher_module
from dfkd_fast.training.teachers.cache import cached_teacher
from dfkd_fast.training.teachers.state import TrainingState, only_one
from dfkd_fast.training.teachers.train import train_teacher

RECIPE = TeacherRecipe(epochs=3, batch_size=20, lr=0.2, crop_padding=2, flip=False)
STEPS = 4
"""in an epoch"""
COMMAND = ["teacher", "train", "cnn_s", "--data", "digits", "--image-size", "8", "--device", "cpu", "--threads", "1"]
COMMAND += ["--epochs", "3", "--batch-size", "256"]


@pytest.fixture
def runtime() -> Runtime:
    return make_runtime(device="cpu", precision="fp32", threads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teachers"


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """80 digits of 8 pixels."""
    digits = load_split("digits", "train", image_size=8)
    return replace(digits, images=digits.images[:80], labels=digits.labels[:80], digest=f"{digits.digest}-80")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each training has taken."""
    counts: list[int] = []

    def counting(*args: Any, on_step: Callable[[], None] | None, **kwargs: Any) -> Any:
        counts.append(0)

        def counted() -> None:
            counts[-1] += 1
            if on_step is not None:
                on_step()

        return train_teacher(*args, on_step=counted, **kwargs)

    monkeypatch.setattr(teacher_module, "train_teacher", counting)
    return counts


Make = Callable[..., dict[str, Tensor]]


@pytest.fixture
def make(images: ImageSet, runtime: Runtime) -> Make:
    def make(recipe: TeacherRecipe = RECIPE, on_step: Callable[[], None] | None = None) -> dict[str, Tensor]:
        model, _ = cached_teacher(recipe, "cnn_s", images, None, runtime=runtime, console="plain", on_step=on_step)
        return model.state_dict()

    return make


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


def stop_after(count: int) -> Callable[[], None]:
    """A signal that comes with step number `count`."""
    left = iter(range(count - 1))

    def on_step() -> None:
        if next(left, None) is None:
            raise Interrupted(signal.SIGINT)

    return on_step


def files(cache: Path) -> tuple[Path, Path]:
    """Weights and record of the only teacher there."""
    (weights,), (record,) = cache.glob("*.safetensors"), cache.glob("*.json")
    return weights, record


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)


def save_often(path: Path, failures: Any) -> None:
    torch.set_num_threads(1)
    model, info = load_model("cnn_s", num_classes=10, image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    for _ in range(25):
        try:
            save_network(path, model, info)
        except Exception:
            failures.value += 1


def test_processes_that_save_one_network_do_not_hinder_each_other(tmp_path: Path) -> None:
    """Each writes under a name of its own."""
    fork = multiprocessing.get_context("fork")
    failures, file = fork.Value("i", 0), tmp_path / "teacher.safetensors"
    writers = [fork.Process(target=save_often, args=(file, failures)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert failures.value == 0
    load_network(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_the_same_network_is_the_same_file(tmp_path: Path) -> None:
    """safetensors shuffles the header's entries; whoever compares files would see another student."""
    model, info = load_model("cnn_s", num_classes=10, image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    for number in range(8):
        save_network(tmp_path / f"{number}.safetensors", model, info)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_a_teacher_that_another_process_trains_is_waited_for(
    make: Make, steps: list[int], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make()
    weights, record = files(cache)
    finished = tmp_path / "finished"
    shutil.copytree(cache, finished)
    weights.unlink()
    record.unlink()
    held = only_one(cache / f"{weights.stem}.training", "", lambda busy: None)
    held.__enter__()

    def on_step() -> None:  # the other process ends
        for file in finished.iterdir():
            shutil.copy(file, cache)
        held.__exit__(None, None, None)

    capsys.readouterr()
    assert equal(first, make(on_step=on_step))
    assert steps == [3 * STEPS]
    assert f"process {os.getpid()} on " in capsys.readouterr().out
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("how", ["flip", "cut", "zero", "empty", "swapped", "record", "other record"])
def test_damage_is_found_and_mended(
    make: Make, steps: list[int], cache: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make()
    weights, record = files(cache)
    content = weights.read_bytes()
    if how == "flip":
        flip(weights, len(content) - 9)
    elif how in ("swapped", "other record"):
        make(replace(RECIPE, seed=1))
        (other,) = set(cache.glob("*.safetensors")) - {weights}
        suffix = ".safetensors" if how == "swapped" else ".json"
        shutil.copy(other.with_suffix(suffix), weights.with_suffix(suffix))
    elif how == "record":
        flip(record, 0)
    else:
        weights.write_bytes({"cut": content[:-100], "zero": bytes(len(content)), "empty": b""}[how])
    capsys.readouterr()
    trained = len(steps)
    assert equal(first, make())
    assert len(steps) == trained + 1
    assert "damaged" in capsys.readouterr().out
    assert equal(first, make())
    assert len(steps) == trained + 1


def test_a_teacher_of_before_there_were_digests_is_named(
    make: Make, cache: Path, steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = make()
    record = files(cache)[1]
    record.write_text(
        json.dumps({key: value for key, value in json.loads(record.read_text()).items() if key != "sha256"})
    )
    assert equal(first, make())
    assert "recorded no digest: taken as it is" in capsys.readouterr().out
    assert len(steps) == 1


def test_files_have_the_users_umask(make: Make, cache: Path) -> None:
    before = os.umask(0o027)
    try:
        make()
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in files(cache)} == {0o640}


def test_a_cache_of_another_user(
    make: Make, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What may not be read is one line with who can mend it; what was trained by another is said."""
    first = make()
    weights = files(cache)[0]

    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(digests, "of_file", forbidden)
        with pytest.raises(
            UserError, match=rf"^DFKD_FAST_CACHE {weights}: cannot be read \(Permission denied\); it be"
        ):
            make()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert equal(first, make())
    assert f"teacher {weights}: trained by user " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stop", "crop_scale"), [(1, 1.0), (STEPS, 1.0), (STEPS + 2, 1.0), (STEPS + 2, 0.4), (2 * STEPS + 1, 1.0)]
)
def test_a_stopped_training_goes_on(
    make: Make,
    steps: list[int],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stop: int,
    crop_scale: float,
) -> None:
    """From the last whole epoch, to the same bits, whatever crops are drawn."""
    make = partial(make, replace(RECIPE, crop_scale=crop_scale))
    with monkeypatch.context() as patch:
        patch.setenv("DFKD_FAST_CACHE", str(tmp_path / "whole"))
        whole = make()
    with pytest.raises(Interrupted) as stopped:
        make(on_step=stop_after(stop))
    epochs = (stop - 1) // STEPS
    assert stopped.value.note == (
        f"the teacher's training goes on after epoch {epochs} with the same command" if epochs else None
    )
    assert equal(whole, make())
    assert steps == [3 * STEPS, stop, (3 - epochs) * STEPS]
    assert [path.suffix for path in sorted(cache.iterdir())] == [".json", ".safetensors"]


def test_a_damaged_checkpoint_costs_an_epoch(
    make: Make, steps: list[int], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make()
    for file in files(cache):
        file.unlink()
    with pytest.raises(Interrupted):
        make(on_step=stop_after(2 * STEPS + 1))
    (newest,) = cache.glob("*.training/00001-2-training/state.safetensors")
    flip(newest, 700)
    assert equal(whole, make())
    assert "an older checkpoint is taken" in capsys.readouterr().out
    assert steps == [3 * STEPS, 2 * STEPS + 1, 2 * STEPS]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status and stderr."""
    capsys.readouterr()
    return main(arguments), capsys.readouterr().err


def test_teacher_train_stops_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.safetensors", tmp_path / "teacher.safetensors"
    assert run([*COMMAND, "--out", str(whole)], capsys) == (0, "")
    command, state = [*COMMAND, "--out", str(out)], tmp_path / "teacher.training"
    status, error = run([*command, "--resume"], capsys)
    assert (status, error) == (
        2,
        f"dfkd-fast: --resume: no training of {out} to resume ({state} is not there); leave it out\n",
    )
    step, left = teacher_module._Trainer.step, iter(range(7))

    def stopping(self: Any, indices: Tensor) -> Tensor:  # in the second of three epochs of five steps
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_module._Trainer, "step", stopping)
        status, error = run(command, capsys)
    assert (status, error) == (130, "dfkd-fast: stopped by SIGINT; to go on: the same command with --resume\n")
    assert not out.exists()
    words = (
        f"dfkd-fast: --out {out}: a training was stopped there after epoch 1; resume with --resume, or delete {state}\n"
    )
    assert run(command, capsys) == (2, words)
    status, error = run([*command, "--resume", "--lr", "0.3"], capsys)
    assert status == 2
    assert "the training of another teacher; this one has recipe lr 0.3 (not 0.1)" in error
    assert run([*command, "--resume"], capsys) == (0, "")
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, whole.name]


def test_two_trainings_into_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "teacher.safetensors"
    with only_one(out.with_suffix(".training"), "", lambda busy: None):
        status, error = run([*COMMAND, "--out", str(out)], capsys)
    assert status == 2
    assert error.startswith(f"dfkd-fast: --out {tmp_path}/teacher.training/lock: process {os.getpid()} on ")
    assert error.endswith("is training it; let it end, or stop it\n")
    assert not list(tmp_path.iterdir())


def test_a_training_begun_elsewhere_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another precision it is refused with the flag that gives it back, on another kind of device a line says so."""
    model = torch.nn.Linear(2, 2)
    kept = (
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    words = {"flag": "--out", "go_on": "again"}
    TrainingState(tmp_path, {"precision": "bf16"}, **words).save(0, *kept)
    with pytest.raises(UserError, match=r"precision fp32 \(not bf16\); give .* with --precision bf16, or delete"):
        TrainingState(tmp_path, {"precision": "fp32"}, **words).take_up(*kept, print)
    said: list[str] = []
    elsewhere = torch.nn.Linear(2, 2, device="meta")
    monkeypatch.setattr(teacher_state, "load_module", lambda *_: None)
    monkeypatch.setattr(teacher_state, "load_optimizer", lambda *_: None)
    assert TrainingState(tmp_path, {"precision": "bf16"}, **words).take_up(elsewhere, *kept[1:], said.append) == 1
    assert "on cpu, goes on with " in said[0]
    assert " on meta: " in said[0]
