"""A run goes on with what it was started with, wherever that lies by now, and with nothing else."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import go_on, same, tiny

import dfkd_fast
import dfkd_kernels
from dfkd_fast.cli.main import main
from dfkd_fast.cli.train import read_arguments
from dfkd_fast.config.sources import load_run
from dfkd_fast.device import runtime as runtime_module
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.training.checkpoints import identity
from dfkd_fast.training.checkpoints.checkpoint import load_network, save_network
from dfkd_fast.training.checkpoints.identity import check_identity, settings_identity
from dfkd_fast.training.train import train


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): path.read_bytes() for path in files}


def test_an_edited_config_is_refused_with_what_differs(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = stopped / "config.toml"
    text = file.read_text()
    file.write_text(text.replace("seed = 0", "seed = 99", 1).replace("student_lr = ", "student_lr = 7"))
    before = contents(stopped)
    assert main(["train", "--resume", str(stopped)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    expected = f"dfkd-fast: --resume {stopped}: config.toml or a flag is not what the run was started with ("
    assert line.startswith(expected)
    assert "seed = 99, was 0" in line
    assert "method.student_lr = 7" in line
    assert contents(stopped) == before


def test_settings_that_decide_nothing_may_be_edited(runs: Path, stopped: Path) -> None:
    file = stopped / "config.toml"
    file.write_text(file.read_text().replace("keep = 2", "keep = 3", 1))
    go_on(stopped)
    assert same(stopped, runs / "whole")


@pytest.mark.parametrize("name", ["tensors", "info"])
def test_another_teacher_is_refused(runs: Path, stopped: Path, tmp_path: Path, name: str) -> None:
    """As a file in the place of the first one, with other tensors, or another normalisation."""
    file = Path(shutil.copy(runs / "teacher.safetensors", tmp_path / "teacher.safetensors"))
    config = replace(load_run(stopped), teacher_weights=file, stop_after_epoch=None)
    model, info = load_network(file)
    if name == "info":
        info = replace(info, mean=(0.25, 0.25, 0.25))
    else:
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
    save_network(file, model, info)
    with pytest.raises(UserError, match=rf"--teacher-weights {file}: the teacher is not .* \({name} = .*, was .*\)"):
        train(config, resume=True)


def test_the_same_teacher_elsewhere_is_taken(runs: Path, stopped: Path, tmp_path: Path) -> None:
    """In other bytes, too; and config.toml says where it lies by now."""
    elsewhere = tmp_path / "elsewhere.safetensors"
    model, info = load_network(runs / "teacher.safetensors")
    save_network(elsewhere, model, info)
    with elsewhere.open("r+b") as file:  # blanks at the end of the header's text
        size = int.from_bytes(file.read(8), "little")
        rest = file.read()
        file.seek(0)
        file.write((size + 8).to_bytes(8, "little") + rest[:size] + b" " * 8 + rest[size:])
    config, resume = read_arguments(["--resume", str(stopped), "--teacher-weights", str(elsewhere)])
    assert resume
    train(config, resume=True)
    assert same(stopped, runs / "whole")
    assert load_run(stopped).teacher_weights == elsewhere


def test_relative_paths_start_where_the_run_was_started(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(runs / "teacher.safetensors", tmp_path / "teacher.safetensors")
    (tmp_path / "away").mkdir()
    with monkeypatch.context() as patched:
        patched.chdir(tmp_path)
        config = tiny("nayer", Path("teacher.safetensors"), Path("run"))
        train(replace(config, stop_after_epoch=1))
        patched.chdir(tmp_path / "away")
        go_on(tmp_path / "run")
    assert same(tmp_path / "run", runs / "whole")


def test_a_class_order_is_found_from_elsewhere_and_counts_by_content(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, run = [f"class {index}" for index in range(10)], tmp_path / "run"
    (tmp_path / "order.txt").write_text("\n".join(names))
    (tmp_path / "away").mkdir()
    with monkeypatch.context() as patched:
        patched.chdir(tmp_path)
        config = tiny("nayer", runs / "teacher.safetensors", Path("run"), class_order="order.txt")
        train(replace(config, stop_after_epoch=1))
        patched.chdir(tmp_path / "away")
        train(replace(load_run(run), stop_after_epoch=2), resume=True)
        (tmp_path / "order.txt").write_text("\n".join(names[::-1]))
        with pytest.raises(UserError, match=r"the teacher is not .*info = "):
            go_on(run)


def test_class_vectors_count_by_content(runs: Path, tmp_path: Path) -> None:
    vectors, moved = tmp_path / "vectors.safetensors", tmp_path / "moved.safetensors"
    save_file({"x": torch.eye(10)}, vectors)
    config = tiny("nayer", runs / "teacher.safetensors", tmp_path / "run", text=str(vectors))
    train(replace(config, stop_after_epoch=1))
    vectors.rename(moved)
    train(replace(config, text=str(moved), stop_after_epoch=2), resume=True)
    save_file({"x": load_file(moved)["x"] * 2}, vectors)
    with pytest.raises(UserError, match=f"--text {vectors}: the list of class vectors is not .*vectors = .*, was "):
        train(config, resume=True)


def test_another_code_is_refused_unless_it_is_asked_for(
    runs: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "code_version", lambda: (("dfkd_fast", "9.0"), ("source", "0" * 64), ("torch", "2")))
    with pytest.raises(UserError, match=r"the code is not .*dfkd_fast = 9\.0, was 0\.1\.0; .*--other-code goes on"):
        go_on(stopped)
    go_on(stopped, other_code=True)
    assert same(stopped, runs / "whole")


def test_auto_is_what_it_came_to_on_the_machine_that_began(
    runs: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it comes to something else the run is refused, and the flag that is named takes it up as it was."""
    file = stopped / "config.toml"
    file.write_text(file.read_text().replace('precision = "fp32"', 'precision = "auto"', 1))
    monkeypatch.setattr(runtime_module, "has_fast_bf16", lambda device: True)
    assert main(["train", "--resume", str(stopped)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    expected = "--precision auto: the precision is not what the run was started with (precision = bf16, was fp32); "
    assert line == f"dfkd-fast: {expected}--precision fp32 goes on as it was"
    config, _ = read_arguments(["--resume", str(stopped), "--precision", "fp32"])
    train(config, resume=True)
    assert same(stopped, runs / "whole")
    assert load_run(stopped).precision == "fp32"


def test_an_older_checkpoint_says_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime, config = make_runtime(device="cpu"), tiny("nayer", tmp_path / "teacher", tmp_path / "run")
    found = settings_identity(config, runtime)
    for asked, refused in (("fp32", False), ("bf16", True), ("auto", False)):
        older = {**found, "config": {**found["config"], "precision": asked, "device": "auto"}}
        del older["precision"]
        with pytest.raises(UserError, match="--precision bf16 goes on as it was") if refused else nullcontext():
            check_identity(older, found, config)
    assert "what the run was started in was not recorded; it goes on in fp32" in capsys.readouterr().out


def test_the_code_is_every_source_file_of_both_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[Path] = set()
    monkeypatch.setattr(identity, "of_file", lambda file: read.add(file) or "0")
    identity.code_version.__wrapped__()
    packages = [Path(package.__file__).parent for package in (dfkd_fast, dfkd_kernels)]
    assert {file for package in packages for file in package.rglob("*.py")} <= read


def test_all_that_computes_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled extension by content, the device, the backends, and the libraries of those and of the networks."""
    identity.active_backends(make_runtime(device="cpu"))  # loads the real extension, if this test runs alone
    native = tmp_path / "_C.so"
    native.write_bytes(b"one")
    monkeypatch.setattr(identity.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(native)))
    before = identity.code_version.__wrapped__()
    native.write_bytes(b"another")
    assert [new[0] for old, new in zip(before, identity.code_version.__wrapped__(), strict=True) if old != new] == [
        "extension"
    ]
    runtime, config = make_runtime(device="cpu"), tiny("nayer", tmp_path / "teacher", tmp_path / "run")
    assert {"triton", "timm", "torchvision"}.isdisjoint(identity.taking_part(config, runtime))
    config = replace(config, teacher="tv:resnet18", student="timm:resnet18")
    versions = dict.fromkeys(("triton", "timm", "torchvision"), "1")
    backends = {"kd_kl": "triton"}
    monkeypatch.setattr(identity, "active_backends", lambda runtime: dict(backends))
    monkeypatch.setattr(identity.metadata, "version", lambda name: versions[name])
    monkeypatch.setattr(identity, "code_version", lambda: before)
    saved = settings_identity(config, runtime)
    assert saved["code"] == {**dict(before), **versions, "device": "cpu", "kernel kd_kl": "triton"}
    for table, key, said in ((backends, "kd_kl", "kernel kd_kl"), *((versions, name, name) for name in versions)):
        with monkeypatch.context() as patched:
            patched.setitem(table, key, "2")
            found = settings_identity(config, runtime)
            with pytest.raises(UserError, match=f"the code is not .*{said} = 2, was .*--other-code goes on"):
                check_identity(saved, found, config)
            check_identity(saved, found, config, other_code=True)


def test_other_code_is_for_resumed_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nayer", "--preset", "digits", "--other-code"]) == 2
    assert "--other-code: says that another dfkd-fast began the run" in capsys.readouterr().err


def test_without_a_checkpoint_an_edited_config_is_refused_too(stopped: Path) -> None:
    shutil.rmtree(stopped / "checkpoints")
    file = stopped / "config.toml"
    file.write_text(file.read_text().replace("seed = 0", "seed = 99", 1))
    with pytest.raises(UserError, match=rf"--resume {stopped}: config\.toml is not as the run wrote it"):
        go_on(stopped)


def test_a_config_of_a_newer_format_is_refused_by_name(stopped: Path) -> None:
    file = stopped / "config.toml"
    file.write_text(file.read_text().replace("format = 1", "format = 2", 1))
    with pytest.raises(UserError, match=r"config\.toml: format 2, written by dfkd-fast 0\.1\.0; this program reads"):
        go_on(stopped)


def test_a_config_of_before_formats_is_read(stopped: Path) -> None:
    file = stopped / "config.toml"
    expected, text = load_run(stopped), file.read_text()
    about = text[text.index("[written]") : text.index("[method]")]
    file.write_text(text.replace(about, ""))
    found = load_run(stopped)
    assert set(found.teacher_recipe.kept) >= set(expected.teacher_recipe.kept), "what such a file says is kept, too"
    recipe = replace(found.teacher_recipe, kept=expected.teacher_recipe.kept)
    assert replace(found, teacher_recipe=recipe) == expected


def test_an_empty_config_is_one_line(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stopped / "config.toml").write_bytes(b"")
    for arguments in (["--resume", str(stopped)], ["nayer", "--preset", "digits", "--run-dir", str(stopped)]):
        assert main(["train", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(stopped) in line
