"""Every command and every snippet in README.md runs, at tiny size and in its order; `make test` itself apart."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from dfkd_fast.catalog import METHODS, MODELS
from dfkd_fast.cli.main import main
from dfkd_fast.config.data_sets import DATA_SETS
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.torchvision_cpu import ensure_importable

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

TINY_RUN = shlex.split(
    "--epochs 3 --warmup-epochs 1 --warmup-rounds 1 --synthesis-steps 2 --synthesis-batch-size 10 "
    "--student-steps 2 --batch-size 8 --noise-features 8 --generator-width 8 --precision fp32 --threads 1"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("console") for line in block.splitlines()]


def make_target(name: str, *settings: str) -> list[str]:
    """What a make target would run, without running it."""
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", name, *settings]
    # the tests may themselves run under make, whose settings are not ours
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    shown = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if line.strip()]


def tiny(arguments: list[str], data: Path) -> list[str]:
    """The same command on a tiny data set and recipe."""
    arguments = [str(data) if item == "DATA" else item for item in arguments]
    if arguments[0] == "train" and "--resume" not in arguments:
        arguments += TINY_RUN
        if {"digits", "digits-quick"} & set(arguments):
            arguments += ["--teacher-recipe.epochs", "1"]
    if arguments[:2] == ["teacher", "train"]:
        arguments += ["--epochs", "1", "--batch-size", "8", "--threads", "1"]
    return arguments


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                shade = 20 * number + (100 if name == "cat" else 0) + (1 if split == "test" else 0)
                Image.new("RGB", (32, 32), (shade % 256, 90, 30)).save(folder / f"{number}.png")
    return tmp_path / "data"


def test_the_commands_run_in_their_order(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    ran = 0
    for line in commands():
        program, *arguments = shlex.split(line)
        if program == "dfkd-fast":
            assert main(tiny(arguments, data)) == 0, line
            ran += 1
    assert ran >= 7
    assert (tmp_path / "runs" / "second" / "student.safetensors").exists()


def test_make_demo_is_the_digits_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    assert "make demo" in commands()
    *_, line = make_target("demo")
    program, *arguments = shlex.split(line)
    assert program == ".venv/bin/dfkd-fast"
    assert arguments == ["train", "nayer", "--preset", "digits-quick"]
    assert main(tiny(arguments, tmp_path)) == 0
    folder = tmp_path / "runs" / "nayer-digits-resnet8-cnn-s0"
    for name in ("student.safetensors", "run.json", "metrics.jsonl", "config.toml", "images/epoch-0001.png"):
        assert (folder / name).exists(), name


def test_make_demo_on_real_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published teacher that ships, class folders of pictures: student, figures and images, without any setting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DFKD_FAST_ZOO", raising=False)
    for shade, name in enumerate(DATA_SETS["cifar10"].class_names):
        folder = tmp_path / "cifar10" / "test" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), (25 * shade, 90, 30)).save(folder / "1.png")
    line = make_target("demo", "DATA=cifar10")[-1]
    assert line.startswith("OMP_NUM_THREADS=1 .venv/bin/dfkd-fast train nayer --preset cifar10-demo --data cifar10 ")
    _, _, *arguments = shlex.split(line)
    assert main([*tiny(arguments, tmp_path), "--cache-teacher-logits", "1"]) == 0
    run = tmp_path / "runs" / "nayer-cifar10-zoo_resnet20-resnet8-s0"
    record = json.loads((run / "run.json").read_text())
    assert record["mean"] == [0.485, 0.456, 0.406]
    assert record["published_weights"].startswith("resnet20-12fca82f.th of https://github.com/akamaster/")
    assert 0 <= record["top1_last"] <= 1
    assert 0 < record["teacher_top1"] <= 1
    assert (run / "images" / "epoch-0001.png").exists()
    assert load_model("resnet8", weights=run / "student.safetensors")[1].std == (0.229, 0.224, 0.225)


def test_make_test_is_what_the_project_checks() -> None:
    assert "make test" in commands()
    assert "-m pytest" in make_target("test")[-1]
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert ci[-1] == "make test", "the last thing printed is pytest's count"
    assert {"make lint", "make types"} <= set(ci)


@pytest.mark.parametrize("target", ["bench", "test"])
def test_every_suite_is_a_command(target: str) -> None:
    """And one that is none is refused with the choices."""
    makefile = (ROOT / "Makefile").read_text()
    suites = re.findall(rf"^{target.upper()}_(\S+) +:= ", makefile, flags=re.MULTILINE)
    assert len(suites) >= 3
    for suite in suites:
        program, *arguments = shlex.split(make_target(target, f"SUITE={suite}")[-1].removeprefix("OMP_NUM_THREADS=1 "))
        assert program in (".venv/bin/python", ".venv/bin/dfkd-fast")
        for path in arguments:
            assert "/" not in path or (ROOT / path).exists() or path.startswith("bench/results/"), (suite, path)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        make_target(target, "SUITE=no-such")
    assert all(suite in refused.value.stderr for suite in suites)


def test_every_make_command_of_a_page_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("kernels/**/*.md")]
    for page in pages:
        for target, suite in re.findall(r"`make ([a-z-]+)(?: SUITE=([a-z-]+))?", page.read_text(encoding="utf-8")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"
            assert re.search(rf"^{target.upper()}_{suite} ", makefile, re.MULTILINE) or not suite, (
                f"{page.name}: {suite}"
            )


def test_the_makefile_is_short() -> None:
    targets = re.findall(r"^([a-z-]+):(?! SUITE)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert len(targets) <= 10


@pytest.mark.parametrize("snippet", blocks("python"))
def test_snippets_run(snippet: str) -> None:
    ensure_importable()
    exec(compile(snippet, "README.md", "exec"), {})


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_every_method_and_no_other_is_in_the_table() -> None:
    table = README.partition("<!-- methods -->")[2].partition("<!-- /methods -->")[0]
    cells = [line.split("|")[2] for line in table.strip().splitlines()[2:]]
    assert sorted(name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)) == sorted(METHODS)


def test_models_of_the_commands_exist() -> None:
    assert {"wrn16_1", "wrn16_2"} <= MODELS.keys()
