"""The command line from outside: what it prints, its exit status, and that it answers without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from dfkd_fast import __version__
from dfkd_fast.catalog import METHODS
from dfkd_fast.cli import train as train_command
from dfkd_fast.cli.main import COMMANDS, main
from dfkd_fast.config.record import write_config
from dfkd_fast.config.sources import default_config, load_config, load_run
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.training.interrupt import Interrupted

NAMED = ("--teacher", "cnn", "--student", "cnn_s")


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must fail as a user's mistake: one line on stderr, exit status 2."""
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("dfkd-fast: ")
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text.removeprefix("dfkd-fast: ").rstrip("\n")


def test_answers_without_torch() -> None:
    """One process runs every command that must answer at once; none may have imported torch."""
    commands = [[], ["--help"], ["--version"], ["ls"], ["ls", "methods"], ["ls", "presets"], ["ls", "models"]]
    commands += [[command, "--help"] for command in COMMANDS]
    commands += [["lss"], ["train", "nayr"], ["train", "--seed", "1"], ["ls", "x"], ["teacher", "x"]]
    code = f"""
import sys
from dfkd_fast.cli.main import main
for command in {commands}:
    assert main(command) in (0, 2), command
    assert "torch" not in sys.modules, command
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_module_and_exit_status() -> None:
    done = subprocess.run([sys.executable, "-m", "dfkd_fast", "trian"], capture_output=True, text=True)
    expected = f"dfkd-fast: command trian: did you mean train? choose {one_of(COMMANDS)}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """As `dfkd-fast ls | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "dfkd_fast", "ls"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        assert all(f"  {command} " in capsys.readouterr().out for command in list(COMMANDS)[:1])
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dfkd-fast {__version__}\n"


def test_help_of_a_method_shows_the_presets_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "nayer", "--preset", "imagenet", "--help"])
    assert not stop.value.code
    shown = " ".join(capsys.readouterr().out.split())
    assert "--bn-weight X weight of the BN-statistics term (0.1)" in shown
    assert "--resume" in shown


def test_ls(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in METHODS)
    assert all(len(line) <= 88 for line in shown.splitlines())
    assert len(shown.splitlines()) <= 40
    assert main(["ls", "methods", "presets"]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("methods:", "CVPR 2024", "--preset cifar100", "71.72 %", "wrn40_2"))
    assert main(["ls", "kernels"]) == 0
    assert "bn_stat_loss" in capsys.readouterr().out
    assert failure(capsys, "ls", "model").startswith("ls model: did you mean models? choose ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train nayr", "train nayr: did you mean nayer? choose nayer"),
        ("train --preset digits", "train: name a method first; choose nayer"),
        ("train nayer --preset", "--preset: expected text"),
        ("train nayer --preset tiny", "--preset tiny: "),
        ("train nayer --config none.toml", "--config none.toml: no such file or directory"),
        ("train nayer --precision fp8", "--precision fp8: choose auto, fp32, bf16, fp16 or tf32"),
        ("train nayer --method.bn-weigth 1", "--method.bn-weigth: unknown flag; did you mean --method.bn-weight?"),
        ("train nayer", "--teacher: missing; "),
        ("train --resume nowhere", "--resume nowhere: no run there (it has no config.toml)"),
        ("train nayer --preset digits --run-dir nowhere --resume", "--resume nowhere: no run there"),
        ("eval nowhere", "eval nowhere: no such run folder or file"),
        ("eval nowhere --batchsize 3", "--batchsize: unknown flag; did you mean --batch-size?"),
        ("teacher trian", "teacher trian: did you mean train? choose train or info"),
        ("teacher train", "teacher train: name MODEL first"),
        ("teacher train cnn", "--data: missing; "),
        ("teacher train cnn --data digits", "--out: missing; "),
        ("teacher train cnn --data digits --out x.pt", "--out x.pt: choose a name that ends in .safetensors"),
        ("teacher train cnn --data digits --out no/x.safetensors", "--out no/x.safetensors: no is no folder that "),
        ("eval nowhere --batch-size 0", "--batch-size 0: choose 1 or more"),
        ("teacher train cnn --data digits --out x.safetensors --epochs 0", "--recipe.epochs 0: choose 1 or more"),
        ("teacher train cnm --data digits --out x.safetensors", "--teacher cnm: did you mean cnn? choose "),
        ("teacher info cnm", "teacher info cnm: did you mean cnn? choose "),
        ("teacher info", "teacher info: "),
    ],
)
def test_mistakes(
    arguments: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert failure(capsys, *arguments.split()).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_teacher_and_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train for one epoch on real digits, then read back what was written."""
    file = tmp_path / "teacher.safetensors"
    recipe = [
        "--epochs",
        "1",
        "--batch-size",
        "128",
        "--lr",
        "0.05",
        "--no-flip",
        "--image-size",
        "16",
        "--threads",
        "1",
    ]
    assert main(["teacher", "train", "cnn", "--data", "digits", "--out", str(file), *recipe]) == 0
    assert main(["teacher", "info", str(file)]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith(("network", "image", "BatchN"))] == [
        "cnn",
        "16",
        "3",
    ]
    digest = sha256(file.read_bytes()).hexdigest()
    assert shown.endswith(f"{digest}\n")

    assert main(["eval", str(file), "--data", "digits", "--threads", "1"]) == 0
    title, *_, accuracy = capsys.readouterr().out.splitlines()
    assert title == f"{file}: cnn on 539 images of digits"
    assert main(["eval", str(file), "--student", "cnn", "--data", "digits", "--image-size", "16"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == accuracy

    # a run folder with this network as its student; the run knows its data
    config = replace(default_config("nayer"), teacher="cnn", student="cnn", data="digits")
    write_config(config, tmp_path / "config.toml")
    assert failure(capsys, "eval", str(tmp_path)).endswith(f"dfkd-fast train --resume {tmp_path}")
    file.rename(tmp_path / "student.safetensors")
    assert main(["eval", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == accuracy


def test_teacher_info_of_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teacher", "info", "resnet18"]) == 0
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert found["parameters"] == "11173962"  # methods' table: 11.17M


def test_teacher_info_of_a_file_by_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"module.fc.weight": torch.zeros(3, 4), "module.bn.running_mean": torch.zeros(4)}
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    assert main(["teacher", "info", str(tmp_path / "other.pth")]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("dfkd-fast did not write", "parameters        12", "BatchNorm layers  1"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainConfig, bool]]:
    """What the training loop was called with; it writes the config as the real one does."""
    calls: list[tuple[TrainConfig, bool]] = []

    def train(config: TrainConfig, *, resume: bool, other_code: bool = False) -> Path:
        calls.append((config, resume))
        config.run_folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            write_config(config, config.run_folder / "config.toml")
        return config.run_folder

    module = types.ModuleType("dfkd_fast.training.train")
    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dfkd_fast.training.train", module)
    return calls


def test_a_setting_is_shown_as_its_flag_is_given(
    runs: list[tuple[TrainConfig, bool]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And what it was before only where it was anything."""
    monkeypatch.chdir(tmp_path)
    flags = ("--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.2", "0.2", "--student", "cnn")
    assert main(["train", "nayer", "--preset", "cifar10", *flags]) == 0
    _, *shown = capsys.readouterr().out.splitlines()
    assert shown == ["  mean = 0.5 0.4 0.3", "  std = 0.2 0.2 0.2", "  student = cnn (not wrn16_2)"]


def test_train(
    runs: list[tuple[TrainConfig, bool]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "nayer", "--preset", "cifar10", "--bn-weight", "5", "--seed", "3"]) == 0
    preset = load_config(default_config("nayer"), preset="cifar10")
    expected = replace(preset, seed=3, method=replace(preset.method, bn_weight=5.0))
    assert runs == [(expected, False)]
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "nayer, preset cifar10 -> runs/nayer-nodata-wrn40_2-wrn16_2-s3",
        "  method.bn_weight = 5.0 (not 10.0)",
        "  seed = 3 (not 0)",
    ]
    assert main(["train", "nayer", "--preset", "cifar10", "--seed", "3"]) == 0  # overwrites nothing
    assert runs.pop()[0].run_folder == Path("runs/nayer-nodata-wrn40_2-wrn16_2-s3-2")
    file = tmp_path / "runs/nayer-nodata-wrn40_2-wrn16_2-s3/config.toml"
    assert main(["train", "--config", str(file), "--run-dir", "other"]) == 0  # the file names the method
    assert runs[1] == (replace(expected, run_dir=Path("other")), False)


def test_resume(runs: list[tuple[TrainConfig, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = ["train", "nayer", "--preset", "cifar10", "--run-dir", "one"]
    assert main([*start, "--stop-after-epoch", "2", "--bn-weight", "5"]) == 0
    first = runs[0][0]
    whole = replace(first, stop_after_epoch=None)
    assert main(["train", "--resume", "one"]) == 0
    assert main([*start, "--bn-weight", "5", "--resume"]) == 0
    assert main(["train", "nayer", "--resume", "one", "--log.every", "7", "--threads", "1"]) == 0
    assert runs[1:3] == [(whole, True)] * 2
    assert runs[3] == (replace(whole, threads=1, log=replace(whole.log, every=7)), True)
    unnamed = ["train", "nayer", "--preset", "cifar10"]
    assert [main(unnamed), main(unnamed), main([*unnamed, "--resume"])] == [0, 0, 0]
    newest, resumed = runs.pop()
    assert (newest.run_folder.name, resumed) == ("nayer-nodata-wrn40_2-wrn16_2-s0-2", True)
    assert [resumed for _, resumed in (runs.pop(), runs.pop())] == [False, False]
    (tmp_path / "one").rename(tmp_path / "moved")
    assert main(["train", "--resume", "moved", "--stop-after-epoch", "3"]) == 0
    assert runs[4] == (replace(whole, run_dir=Path("moved"), stop_after_epoch=3), True)


def test_torchrun_restarts(
    runs: list[tuple[TrainConfig, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on where torchrun was told to restart it; with another recipe it does not."""
    monkeypatch.chdir(tmp_path)
    command = ["train", "nayer", "--preset", "cifar10"]
    named = [*command, "--run-dir", "one"]
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert [main(named), main(named), main(command), main(command)] == [0, 0, 0, 0]
    assert [resumed for _, resumed in runs] == [False, True, False, False]
    assert runs[0][0] == runs[1][0]
    assert main([*named, "--seed", "1"]) == 2
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    main(named)
    assert not runs[-1][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--resume one --seed 1", "--seed 1: the run in one has 0; a resumed run keeps its config"),
        ("nayer --resume one --bn-weight 6", "--method.bn-weight 6.0: the run in one has 10.0; "),
        ("nayer --preset cifar100 --run-dir one --resume", "--method.synthesis-steps 40: the run in one has 30; "),
        ("--resume one --run-dir two", "--run-dir two: "),
        ("muse --resume one", "train muse: the run in one is one of nayer"),
    ],
)
def test_resume_keeps_the_config(
    arguments: str,
    message: str,
    runs: list[tuple[TrainConfig, bool]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "nayer", "--preset", "cifar10", "--run-dir", "one"]) == 0
    before = (tmp_path / "one/config.toml").read_text()
    capsys.readouterr()
    assert failure(capsys, "train", *arguments.split()).startswith(message)
    assert (len(runs), (tmp_path / "one/config.toml").read_text()) == (1, before)
    assert load_run(Path("one")).seed == 0


@pytest.mark.parametrize(("signum", "name", "status"), [(2, "SIGINT", 130), (15, "SIGTERM", 143)])
def test_interrupted_run_says_how_to_go_on(
    signum: int,
    name: str,
    status: int,
    runs: list[tuple[TrainConfig, bool]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop = Interrupted(signum)

    def train(config: TrainConfig, *, resume: bool, other_code: bool = False) -> Path:
        raise stop

    monkeypatch.setattr(sys.modules["dfkd_fast.training.train"], "train", train)
    start = ["train", "nayer", "--preset", "cifar10", "--run-dir", str(tmp_path)]
    assert main(start) == status
    assert capsys.readouterr().err == f"dfkd-fast: stopped by {name} before anything was written\n"
    stop.run_dir = tmp_path
    assert main(start) == status
    expected = f"dfkd-fast: stopped by {name}; to go on: dfkd-fast train --resume {tmp_path}\n"
    assert capsys.readouterr().err == expected


def test_ctrl_c_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "run", interrupt)
    assert main(["train", "nayer"]) == 130
    assert capsys.readouterr().err == "dfkd-fast: interrupted\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: list[str]) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(train_command, "run", fail)
    with pytest.raises(ValueError, match="a bug") as error:
        main(["train", "nayer"])
    assert not isinstance(error.value, UserError)
