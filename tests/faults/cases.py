"""The runs that faults are put into: tiny ones of a pool method, of a stepwise method and of a teacher's training, and
one that goes on after it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd_fast.models.factory import load_model
from dfkd_fast.training.checkpoints.checkpoint import save_network

_FLAGS = [
    *("--no-train-teacher", "--teacher", "cnn_s", "--student", "cnn_s", "--num-classes", "10", "--image-size", "32"),
    *("--device", "cpu", "--precision", "fp32", "--threads", "1", "--epochs", "3", "--warmup-epochs", "1"),
    *("--synthesis-steps", "2", "--synthesis-batch-size", "12", "--batch-size", "12"),
]
_POOL = [
    "--noise-features",
    "16",
    "--warmup-rounds",
    "2",
    "--rounds",
    "1",
    "--student-steps",
    "2",
    "--generator-width",
    "4",
]
_STEPWISE = ["--student-steps", "2", "--generator-width", "4"]
_TEACHER = [
    *("--data", "digits", "--image-size", "8", "--device", "cpu", "--precision", "fp32", "--threads", "1"),
    *("--epochs", "3", "--batch-size", "256"),
]


@dataclass(frozen=True)
class Case:
    """A command that writes below its working folder, and the one that goes on after it was stopped."""

    name: str
    start: Sequence[str]
    resume: Sequence[str]
    begun: str
    """the file that tells that there is something to go on with"""
    before: Sequence[str] = ()
    """what is run, without faults, before the faults come"""

    def command(self, folder: Path) -> list[str]:
        """What a user types now."""
        return [*(self.resume if (folder / self.begun).exists() else self.start)]


def make_cases(shared: Path) -> dict[str, Case]:
    """The cases by name; `shared` is a folder for the teacher that two of them distil from."""
    teacher = write_teacher(shared / "teacher.safetensors")
    flags = [*_FLAGS, "--teacher-weights", str(teacher), "--run-dir", "run"]
    resume = ["train", "--resume", "run"]
    pool = ["train", "nayer", *flags, *_POOL]
    train = ["teacher", "train", "cnn_s", *_TEACHER, "--out", "teacher.safetensors"]
    return {
        "pool": Case("pool", pool, resume, "run/config.toml"),
        "stepwise": Case("stepwise", ["train", "zskt", *flags, *_STEPWISE], resume, "run/config.toml"),
        "teacher": Case("teacher", train, [*train, "--resume"], "teacher.training"),
        "resume": Case("resume", resume, resume, "run/config.toml", [*pool, "--stop-after-epoch", "2"]),
    }


def write_teacher(file: Path) -> Path:
    """A teacher whose BN statistics are not those of a fresh network."""
    torch.manual_seed(0)
    model, info = load_model("cnn_s", num_classes=10, image_size=32, mean=(0.3,) * 3, std=(0.4,) * 3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_network(file, model, info)
    return file


NAMES = ("pool", "stepwise", "teacher", "resume")


def outcome(folder: Path) -> dict[str, Any]:
    """What a run came to: networks and pools as bytes, metrics and run.json without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if (path.suffix == ".safetensors" and "checkpoints" not in name) or path.suffix in (".bin", ".png"):
            found[name] = path.read_bytes()
    metrics = folder / "run" / "metrics.jsonl"
    if metrics.exists():
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        found["metrics"] = [
            {key: value for key, value in line.items() if key not in ("seconds", "elapsed", "core_seconds")}
            for line in lines
        ]
    record = folder / "run" / "run.json"
    if record.exists():
        content = json.loads(record.read_text())
        kept = ("complete", "images_synthesized", "generator_steps", "student_steps", "config_hash")
        found["record"] = {key: content[key] for key in kept}
    return found
