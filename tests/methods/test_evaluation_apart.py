"""The evaluation data never touch a run: two sets of them, or none, and the student's file is the same, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import tiny, write_teacher

from dfkd_fast.catalog import METHODS
from dfkd_fast.training import judge
from dfkd_fast.training import run as run_module
from dfkd_fast.training.train import train


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of names, size and statistics other than those of digits."""
    root = tmp_path_factory.mktemp("data")
    for index in range(10):
        place = root / "test" / f"class{index}"
        place.mkdir(parents=True)
        Image.new("RGB", (20, 20), (250, 200, 20 * index)).save(place / "0.png")
    return root


@pytest.mark.parametrize("name", METHODS)
def test_one_student_whatever_it_is_evaluated_on(
    name: str, teacher_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though evaluation draws random numbers from every stream that there is."""

    def drawing(*arguments: Any, **settings: Any) -> Any:
        torch.rand(7), np.random.rand(7), random.random()
        return evaluate(*arguments, **settings)

    evaluate = judge.evaluate
    monkeypatch.setattr(judge, "evaluate", drawing)
    monkeypatch.setattr(run_module, "evaluate", drawing)
    students = []
    for number, data in enumerate((None, "digits", str(folder))):
        run = train(_short(tiny(name, teacher_file, tmp_path / str(number)), data))
        students.append((run / "student.safetensors").read_bytes())
    assert students[0] == students[1] == students[2]


def _short(config: Any, data: str | None) -> Any:
    from dataclasses import replace

    return replace(config, data=data, method=replace(config.method, epochs=2))
