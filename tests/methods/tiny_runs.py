"""Runs of any method that take seconds: the digits preset cut down, from a teacher that has seen nothing."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd_fast.config.sources import default_config, load_config, load_run
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.models.factory import load_model
from dfkd_fast.training.checkpoints.checkpoint import save_network
from dfkd_fast.training.train import train

SHAPE = {"num_classes": 10, "image_size": 32, "mean": (0.3, 0.3, 0.3), "std": (0.4, 0.4, 0.4)}
# Where a method has such a setting, it is cut down to this; odd numbers, so that nothing divides evenly.
TINY = {
    "epochs": 3,
    "warmup_epochs": 1,
    "warmup_rounds": 2,
    "rounds": 1,
    "synthesis_steps": 3,
    "low_res_steps": 1,
    "synthesis_batch_size": 23,
    "batch_size": 23,
    "student_steps": 3,
    "student_steps_per_round": 2,
    "generator_width": 16,
    "noise_features": 16,
    "latent_dim": 16,
    "buffer_size": 40,
    "attention_weight": 250.0,
    "bank_size": 40,
    "num_negatives": 30,
    "synthetic_images": 30,
}


def write_teacher(file: Path) -> Path:
    """A teacher whose BN statistics are not those of a fresh network."""
    torch.manual_seed(0)
    model, info = load_model("cnn", **SHAPE)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    save_network(file, model, info)
    return file


def tiny(name: str, teacher_file: Path, run_dir: Path, **settings: Any) -> TrainConfig[Any]:
    config = load_config(default_config(name), preset="digits")
    names = {item.name for item in fields(config.method)}
    small = {key: value for key, value in TINY.items() if key in names}
    if "generator_width" in names:  # HiDFD's unit is smaller already
        small["generator_width"] = min(TINY["generator_width"], config.method.generator_width)
    recipe = replace(config.method, **small)
    return replace(
        config,
        method=recipe,
        data=None,
        teacher="cnn",
        student="cnn_s",
        train_teacher=False,
        teacher_weights=teacher_file,
        run_dir=run_dir,
        precision="fp32",
        device="cpu",
        threads=1,
        log=replace(config.log, images_per_class=0),
        **settings,
    )


def go_on(folder: Path, **options: Any) -> None:
    """Resume the run in a folder, to its end."""
    train(replace(load_run(folder), stop_after_epoch=None), resume=True, **options)


def same(folder: Path, whole: Path) -> bool:
    """Whether two runs have the same student, bit for bit."""
    return (folder / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
