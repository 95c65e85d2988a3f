"""Help, completion, and presets as files: what a command line tells before anything is computed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dfkd_fast.catalog import METHODS, presets
from dfkd_fast.cli.completion import SCRIPTS, candidates
from dfkd_fast.cli.main import main
from dfkd_fast.cli.train import GROUPS, TrainCommand
from dfkd_fast.config.flag_help import field_texts, flags_of
from dfkd_fast.config.sources import default_config, load_config

PRESETS = [(method, preset) for method in METHODS for preset in presets(method)]


def helped(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Lines of a help page; it ends the command well."""
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main(arguments))
    assert not stop.value.code
    shown = capsys.readouterr()
    assert not shown.err
    lines: list[str] = shown.out.splitlines()
    return lines


@pytest.mark.parametrize("method", METHODS)
def test_help_of_a_method_fits_a_screen(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = helped(capsys, "train", method, "--help")
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    everything = "\n".join(helped(capsys, "train", method, "--help-all"))
    names = {line.split()[0].replace("[no-]", "") for line in everything.splitlines() if line.startswith("  --")}
    assert {flag.name.removeprefix("--method.").removeprefix("--") for flag in flags_of(default_config(method))} <= {
        name.removeprefix("--") for name in names
    }


def test_every_flag_has_a_text() -> None:
    """A docstring that is not found (code without its source) would leave help empty."""
    configs: list[Any] = [TrainCommand(), *(default_config(method) for method in METHODS)]
    for config in configs:
        assert not [flag.name for flag in flags_of(config) if not flag.text]
    assert field_texts(TrainCommand)["config"].startswith("TOML file")


def test_groups_name_flags_that_exist() -> None:
    known = {flag.name for config in (TrainCommand(), default_config("nayer")) for flag in flags_of(config)}
    known |= {f"--{name.removeprefix('--method.')}" for name in known}
    assert not [name for names in GROUPS.values() for name in names if name not in known]


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("eval", "--weights-key"),
        ("export", "--opset"),
        ("synth", "--licence"),
        ("doctor", "--teacher-weights"),
        ("teacher train", "--recipe.lr"),
        ("teacher info", "--network"),
        ("bench methods", "--batch-share"),
        ("pool verify", "--repair"),
        ("pool export", "--slice"),
        ("pool import", "--image-size"),
    ],
)
def test_every_sub_command_lists_its_flags(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    for asked in ("--help", "--help-all"):
        lines = helped(capsys, *command.split(), asked)
        assert any(line.strip().startswith((f"{flag} ", flag.replace("recipe.", ""))) for line in lines)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tr", ["train"]),
        ("train nay", ["nayer"]),
        ("train nayer --prec", ["--precision"]),
        ("train nayer --precision b", ["bf16"]),
        ("train nayer --preset digits-", ["digits-quick"]),
        ("train nayer --bn-w", ["--bn-weight"]),
        ("train nayer --dry", ["--dry-run"]),
        ("train nayer --student wrn40_", ["wrn40_2", "wrn40_1"]),
        ("eval run --decoder d", ["dali"]),
        ("pool ve", ["verify"]),
        ("pool verify --re", ["--repair"]),
        ("completion fi", ["fish"]),
        ("train nayer --run-dir some", []),
        ("nonsense --x", []),
    ],
)
def test_completion(words: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path))
    assert candidates(words.split()) == expected
    assert candidates(words.split()) == expected, "from the cache"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_completion_scripts_are_read_by_their_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = "\n".join(helped(capsys, "completion", shell))
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([found, "-n", "/dev/stdin"], input=script, text=True, check=True)


def test_bash_completes_by_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shell's own part, with a dfkd-fast that echoes what it is asked."""
    script = "\n".join(helped(capsys, "completion", "bash"))
    (tmp_path / "dfkd-fast").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "dfkd-fast").chmod(0o755)
    ask = 'COMP_WORDS=(dfkd-fast train "na"); COMP_CWORD=2; _dfkd_fast; printf "%s|" "${COMPREPLY[@]}"'
    path = f"{tmp_path}:/usr/bin:/bin"
    bash = ["bash", "--norc", "-c", f"{script}\n{ask}"]
    done = subprocess.run(bash, env={"PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout == "completion|--words|train|na|"


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_a_copied_preset_gives_the_same_settings(
    method: str, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    assert main(["cp", f"{method}/{preset}", str(file)]) == 0
    assert load_config(default_config(method), file=file) == load_config(default_config(method), preset=preset)
    capsys.readouterr()
    assert main(["cat", f"{method}/{preset}"]) == 0
    assert capsys.readouterr().out == file.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("cat nayr/digits", "dfkd-fast: cat nayr: did you mean nayer?"),
        ("cat nayer/digit", "dfkd-fast: cat nayer/ digit: did you mean digits?"),
        ("cp nayer/digits", "dfkd-fast: cp: expected METHOD/PRESET FILE.toml, not 1 words"),
        ("cp nayer/digits there.toml", "dfkd-fast: cp there.toml: is there already; choose another name"),
        ("cp nayer/digits no/where.toml", "dfkd-fast: cp no/where.toml: there is no folder no"),
        ("completion csh", "dfkd-fast: completion csh: "),
        ("train nayer --preset digits --dryrun", "dfkd-fast: --dryrun: unknown flag; did you mean --dry-run?"),
        ("train nayer --device 2 --devics 2", "dfkd-fast: --devics: unknown flag; did you mean --devices?"),
        ("teacher info none.pth", "dfkd-fast: teacher info none.pth: no such file"),
        ("teacher info folder/none", "dfkd-fast: teacher info folder/none: no such file"),
    ],
)
def test_mistakes(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.toml").write_text("")
    assert main(arguments.split()) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(message)
    assert shown.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["there.toml"]


def test_help_escapes_what_a_config_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file may be anybody's, and its values are the defaults that help shows."""
    (tmp_path / "config.toml").write_text('data = "\\u001b[31mred"\n[method]\nname = "nayer"\n')
    for asked in ("--help", "--help-all"):
        lines = helped(capsys, "train", "--config", str(tmp_path / "config.toml"), asked)
        assert max(map(len, lines)) <= 80 or asked == "--help-all", "its path is long"
        text = "\n".join(lines)
        assert "\x1b" not in text
        assert r"\x1b[31mred" in text
