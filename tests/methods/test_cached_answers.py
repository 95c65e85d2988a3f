"""Kept answers compared with the teacher in every step: what is run, over how many steps, and that it goes on."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_runs import write_teacher

from dfkd_fast.benchmark.answers import AnswerTimes
from dfkd_fast.training.train import train

BENCH = Path(__file__).parents[2] / "bench" / "methods"
PARTS = ("cells", "runs", "table", "quick", "cached_answers")
TIMES = AnswerTimes(step=0.3, cached_step=0.1, answer=1e-4, steps=1000, images=2000)
TINY = [
    *("--teacher", "cnn", "--student", "cnn_s", "--image-size", "32", "--precision", "fp32", "--eval.every", "0"),
    *("--epochs", "3", "--warmup-epochs", "1", "--synthesis-batch-size", "10", "--batch-size", "8"),
    *("--generator-width", "8", "--latent-dim", "8", "--buffer-size", "20"),
]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCH)
    yield importlib.import_module("cached_answers")
    for name in PARTS:
        sys.modules.pop(name, None)


def test_steps_in_equal_time(bench: ModuleType) -> None:
    """300 s without answers: 1.6 s of answers and 2984 steps of 0.1 s."""
    assert bench.steps_in_equal_time(TIMES, 8) == pytest.approx(2984, abs=1)
    assert bench.steps_in_equal_time(TIMES, 16) == pytest.approx(2968, abs=1)


def test_a_run_is_the_published_recipe_at_a_quarter(bench: ModuleType, tmp_path: Path) -> None:
    options, more = bench._options(["--data", "d", "--teacher-weights", "t", "--cache", str(tmp_path)])
    whole, eight, sixteen = bench.same_steps(options, more, 1)
    assert [cell.resolved().cache_teacher_logits for cell in (whole, eight, sixteen)] == [0, 8, 16]
    assert {(cell.resolved().method, cell.seed) for cell in (eight, sixteen)} == {(whole.resolved().method, 1)}
    assert (whole.resolved().method.epochs, whole.resolved().method.student_steps) == (55, 40)
    assert whole.arguments[:4] == ("train", "ssdkd", "--preset", "cifar10")
    assert "TEACHERS/wrn40_2-cifar10.safetensors" in whole.arguments
    assert not {"d", "t"} & set(whole.arguments)


class InTurn(nullcontext[Any]):
    """In place of the pool of threads, in which a run cannot look for signals."""

    map = staticmethod(map)

    def __enter__(self) -> Any:
        return self


def in_this_process(runner: Any, recipe: Any, folder: Path) -> bool:
    train(replace(recipe.config, run_dir=folder))
    return True


def test_runs_are_made_once(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it with next to no steps: five lines a seed, a table, and nothing the second time."""
    measured: list[Any] = []
    monkeypatch.setattr(bench.Runner, "_process", in_this_process)
    monkeypatch.setattr(sys.modules["runs"], "ThreadPoolExecutor", InTurn)
    monkeypatch.setattr(bench, "_measured", lambda cell: measured.append(cell) or TIMES)
    page, results = tmp_path / "page.md", tmp_path / "lines.jsonl"
    page.write_text("<!-- cached-answers -->\n<!-- /cached-answers -->\n")
    place = ["--cache", str(tmp_path / "cache"), "--results", str(results), "--page", str(page), "--seeds", "0"]
    teacher = write_teacher(tmp_path / "cnn.safetensors")
    arguments = ["--data", "digits", "--teacher-weights", str(teacher), *place, *TINY, "--student-steps", "1"]
    monkeypatch.setattr(bench, "steps_in_equal_time", lambda times, count: 2 * count)
    assert bench.main(arguments) == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(line["variant"], line["student_steps"]) for line in lines] == [
        ("all views", 2),
        ("8 answers", 2),
        ("16 answers", 2),
        ("8 answers in equal time", 16),
        ("16 answers in equal time", 32),
    ]
    assert "| SSD-KD, 16 answers in equal time |" in page.read_text()
    monkeypatch.setattr(bench.Runner, "_process", None)
    assert bench.main(arguments) == 0
    assert (len(results.read_text().splitlines()), len(measured)) == (5, 1)


def test_what_it_would_take(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(bench, "_measured", lambda cell: TIMES)
    monkeypatch.setattr(bench, "processor_seconds", lambda config: 1800.0 if config.cache_teacher_logits else 3600.0)
    assert bench.main(["--data", "digits", "--teacher-weights", "t", "--cache", str(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("\n15 runs: 9.0 processor hours\n")
