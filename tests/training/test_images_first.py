"""All images first, then the student: a schedule of the alternating loop, with the same boundaries and resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.models.factory import load_model
from dfkd_fast.training.checkpoints.checkpoint import save_network
from dfkd_fast.training.train import train

FLAGS = [
    *("--epochs", "4", "--warmup-epochs", "2", "--warmup-rounds", "2", "--rounds", "0", "--synthesis-steps", "2"),
    *("--synthesis-batch-size", "6", "--batch-size", "6", "--student-steps", "2", "--no-flip", "--jitter", "1"),
    *("--teacher", "cnn", "--student", "cnn_s", "--threads", "1", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig[Any]:
    """A run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    model, info = load_model("cnn", num_classes=3, image_size=8, mean=(0.5,) * 3, std=(0.2,) * 3)
    save_network(folder / "teacher.safetensors", model, info)
    made = load_config(default_config("deepinversion"), flags=FLAGS)
    config = replace(made, teacher_weights=folder / "teacher.safetensors", run_dir=folder / "run")
    train(config)
    return config


def phases(folder: Path) -> list[tuple[int, str]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(record["epoch"], record["phase"]) for record in map(json.loads, lines)]


def test_images_then_student(whole: TrainConfig[Any]) -> None:
    folder = whole.run_folder
    assert phases(folder) == [(0, "synthesis"), (1, "synthesis"), (2, "distillation"), (3, "distillation")]
    record = json.loads((folder / "run.json").read_text())
    assert (record["images_synthesized"], record["generator_steps"], record["student_steps"]) == (24, 8, 4)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_resume_at_every_boundary(whole: TrainConfig[Any], tmp_path: Path, epochs: int) -> None:
    """Between two batches of images, between images and student, between two epochs of the student."""
    pieces = replace(whole, run_dir=tmp_path / "run")
    train(replace(pieces, stop_after_epoch=epochs))
    assert not (tmp_path / "run" / "student.safetensors").exists()
    train(pieces, resume=True)
    expected, found = (load_file(folder / "student.safetensors") for folder in (whole.run_folder, tmp_path / "run"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert phases(whole.run_folder) == phases(tmp_path / "run")
