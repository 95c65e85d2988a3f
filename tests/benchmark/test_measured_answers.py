"""`--cache-teacher-logits auto`: what is measured, what is chosen, and that a run and its resume keep it."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from test_dry_run import INFO, TINY
from tiny_runs import same, tiny, write_teacher

from dfkd_fast.benchmark import answers
from dfkd_fast.benchmark.answers import AnswerTimes, decide, measure_answers, offer
from dfkd_fast.benchmark.step_timer import TimingWindow
from dfkd_fast.cli.main import main
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.training.train import train

PAYS = AnswerTimes(step=0.3, cached_step=0.1, answer=1e-4, steps=1000, images=2000)
"""200 of 300 s saved; 1.6 s for 8 answers to each image"""


@pytest.mark.parametrize(
    ("changed", "possible", "chosen"),
    [
        ({}, 162, 16),
        ({}, 25, 16),
        ({}, 9, 9),  # all that there are
        ({}, 2, 2),
        ({"answer": 0.01}, 162, 0),  # 16 take 320 s, 8 take 160
        ({"answer": 0.005}, 162, 8),  # 160 s of 200 are too much, 80 are not
        ({"answer": 0.0015}, 162, 16),  # 48 s
        ({"cached_step": 0.28}, 162, 0),  # 20 s of 300
        ({"cached_step": 0.31}, 162, 0),
    ],
)
def test_what_is_chosen(changed: dict[str, float], possible: int, chosen: int) -> None:
    assert replace(PAYS, **changed).choose(possible) == chosen


def test_what_a_line_says() -> None:
    """Hours of two devices, what the answers take off."""
    said = "0.109 of 0.167 GPU-hours of student steps (student step 300.0 -> 100.0 ms); it changes results"
    assert PAYS.saved(16) == pytest.approx(196.8)
    assert PAYS.line(16, "GPU-hours", 2) == said


@pytest.mark.parametrize("name", ["nayer", "muse", "kd"])
def test_steps_and_answers_are_timed(name: str) -> None:
    """Of a pool of one size, of two, and of one that no round fills."""
    config = load_config(default_config(name), preset="digits", flags=TINY)
    runtime = make_runtime(device="cpu", precision="fp32", threads=1)
    times, possible = measure_answers(config, INFO, runtime, TimingWindow(warmup=1, samples=2), step=1e-9)
    assert possible == 25
    assert 0 < times.answer < times.cached_step
    assert times.steps == 8
    assert times.images > 0
    assert times.choose(possible) == 0  # a step that takes no time cannot be made faster
    assert offer(config, INFO, runtime, TimingWindow(warmup=1, samples=2), 1e-9) == ""


def test_a_method_that_keeps_none_says_why() -> None:
    config = load_config(default_config("zskt"), preset="digits", flags=TINY)
    runtime = make_runtime(device="cpu", precision="fp32", threads=1)
    assert decide(config, INFO, runtime) == (0, "this method keeps no images")
    assert offer(config, INFO, runtime, TimingWindow(), 1.0) == ""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny run from the command line, of which a measurement says that 16 answers pay."""
    asked = []

    def measured(*arguments: Any, **_: Any) -> tuple[AnswerTimes, int]:
        asked.append(arguments)
        return PAYS, 25

    monkeypatch.setattr(answers, "measure_answers", measured)
    teacher = write_teacher(tmp_path / "cnn.safetensors")
    flags = ["--no-train-teacher", "--teacher-weights", str(teacher), "--image-size", "32"]
    flags += [*TINY, "--generator-width", "16", "--noise-features", "16", "--rounds", "1", "--eval.every", "0"]

    def start(folder: str, *more: str) -> int:
        return main(["train", "nayer", "--preset", "digits", *flags, "--run-dir", str(tmp_path / folder), *more])

    start.asked = asked  # type: ignore[attr-defined]
    return start


def test_a_run_and_its_resume_keep_what_was_chosen(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = ("--cache-teacher-logits", "auto")
    assert run("auto", *auto, "--stop-after-epoch", "2") == 0
    assert "\n--cache-teacher-logits auto: 16 (saves 0.0547 of 0.0833 hours" in capsys.readouterr().out
    assert tomllib.loads((tmp_path / "auto" / "config.toml").read_text())["cache_teacher_logits"] == 16
    assert json.loads((tmp_path / "auto" / "run.json").read_text())["cache_teacher_logits"] == 16
    assert run("auto", *auto) == 2  # it is there already: nothing is measured for it
    assert "holds a run already" in capsys.readouterr().err
    assert run("auto", *auto, "--resume") == 0
    assert len(run.asked) == 1
    assert run("number", "--cache-teacher-logits", "16") == 0
    assert same(tmp_path / "auto", tmp_path / "number")
    assert run("auto", "--cache-teacher-logits", "8", "--resume") == 2
    assert "--cache-teacher-logits 8: the run in" in capsys.readouterr().err


def test_the_dry_run_settles_and_offers(run: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("none", "--dry-run") == 0
    out = capsys.readouterr().out
    assert re.search(r"^--cache-teacher-logits 16 would save 0\.0547 of 0\.0833 hours of student steps ", out, re.M)
    assert run("none", "--dry-run", "--cache-teacher-logits", "4") == 0
    assert "would save" not in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_python_gives_a_number(tmp_path: Path) -> None:
    config = tiny("nayer", write_teacher(tmp_path / "cnn.safetensors"), tmp_path / "run", cache_teacher_logits="auto")
    with pytest.raises(UserError, match=r"--cache-teacher-logits auto: .* from Python give a number"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nayer", "--preset", "digits", "--cache-teacher-logits", "many"]) == 2
    assert "--cache-teacher-logits many: choose auto or a whole number" in capsys.readouterr().err
    assert main(["train", "nayer", "--preset", "digits", "--cache-teacher-logits", "-1"]) == 2
    assert "--cache-teacher-logits -1: choose 0 or more" in capsys.readouterr().err
