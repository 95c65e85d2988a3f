"""A network of the reader's own, of one channel, two classes and 96 x 64 pixels: from plain torch to a student."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_runs import go_on, same, tiny
from torch import nn

from dfkd_fast.catalog import METHODS
from dfkd_fast.cli.main import main
from dfkd_fast.config.own_networks import OwnNetwork
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.models.own_code import build_own
from dfkd_fast.models.weights.header import HEADER
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.training.records import run_record
from dfkd_fast.training.train import train

NET = """
from torch import nn

def block(ins, outs):
    return nn.Sequential(nn.Conv2d(ins, outs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU())

class Mine(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layer1, self.layer2, self.layer3 = block(1, width), block(width, 2 * width), block(2 * width, 2 * width)
        self.fc = nn.Linear(2 * width, 2)

    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))

class Small(Mine):
    def __init__(self):
        super().__init__(width=4)
"""
INPUT = ("--num-classes", "2", "--mean", "0.5", "--std", "0.25", "--image-size", "96", "64")
SIZES = ("--epochs", "2", "--warmup-epochs", "1", "--rounds", "1", "--synthesis-steps", "2", "--student-steps", "2")
SMALL = (*SIZES, "--batch-size", "6", "--synthesis-batch-size", "6", "--generator-width", "8", "--noise-features", "8")
OF_METHOD: dict[str, dict[str, Any]] = {"muse": {"image_sizes": (32, 64)}, "muse-s": {"image_sizes": (32,)}}


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tall grey images (N, 96, 64) of two classes, dark and light ones."""
    labels = np.arange(count) % 2
    images = np.random.default_rng(0).integers(0, 128, (count, 96, 64)) + 127 * labels[:, None, None]
    return images.astype(np.uint8), labels[:, None]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code, weights that plain torch has trained, and images."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(NET)
    images, labels = pictures(16)
    np.savez(folder / "data.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    torch.manual_seed(0)
    mine = build_own(OwnNetwork(str(folder / "net.py"), "Mine", ()), "--teacher")
    optimizer = torch.optim.Adam(mine.parameters(), lr=0.02)
    seen = (torch.from_numpy(images).float()[:, None] / 255 - 0.5) / 0.25
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(mine(seen), torch.from_numpy(labels[:, 0])).backward()
        optimizer.step()
    torch.save(mine.state_dict(), folder / "mine.pth")
    return folder


def test_from_plain_torch_to_a_student(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(own)
    monkeypatch.setattr(run_record, "matmul_rate", lambda runtime: 1.0)  # measuring it takes as long as a run
    networks = ("--teacher", "net.py:Mine", "--teacher-weights", "mine.pth", "--student", "net.py:Small")
    run = ["train", "nayer", *networks, *INPUT, *SMALL, "--device", "cpu", "--data", "data.npz"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*run, "--run-dir", str(whole)]) == 0
    told = capsys.readouterr().out
    assert "teacher top-1 1.0000 on 16 images of data, at 96x64 px" in told
    assert "6 images of 96x64" in told
    assert main([*run, "--run-dir", str(stopped), "--stop-after-epoch", "1"]) == 0
    assert main(["train", "--resume", str(stopped)]) == 0
    assert same(stopped, whole)
    assert PoolFiles(whole / "pool").manifest.layout.fields["images"].shape == (96, 64, 1)
    with safe_open(whole / "student.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()[HEADER])
    assert (header["image_size"], header["in_chans"], header["num_classes"]) == ([96, 64], 1, 2)
    assert (header["mean"], header["std"]) == ([0.5], [0.25])
    assert (whole / "images" / "epoch-0001.png").is_file()
    capsys.readouterr()
    assert main(["eval", str(whole), "--data", "data.npz"]) == 0
    assert main(["teacher", "info", str(whole / "student.safetensors")]) == 0
    found = capsys.readouterr().out
    assert "on 16 images of data" in found
    assert "96x64" in found


def config_of(name: str, own: Path, run_dir: Path) -> TrainConfig[Any]:
    """A tiny run of a method from that teacher into a smaller one of its kind."""
    config = tiny(name, own / "mine.pth", run_dir)
    stated = {"image_size": (96, 64), "num_classes": 2, "mean": (0.5,), "std": (0.25,), "in_chans": None}
    networks = {"teacher": f"{own / 'net.py'}:Mine", "student": f"{own / 'net.py'}:Small"}
    collected = None if config.collected is None else str(own / "data.npz")
    small = {"synthesis_batch_size": 7, "batch_size": 7, "generator_width": 8, **OF_METHOD.get(name, {})}
    names = {item.name for item in fields(config.method)}
    recipe = replace(config.method, **{key: value for key, value in small.items() if key in names})
    return replace(config, method=recipe, collected=collected, **stated, **networks)


@pytest.mark.nightly
@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_images_of_that_shape(name: str, own: Path, tmp_path: Path) -> None:
    config = config_of(name, own, tmp_path / "whole")
    train(config)
    train(replace(config, run_dir=tmp_path / "stopped", stop_after_epoch=2))
    go_on(tmp_path / "stopped")
    assert same(tmp_path / "stopped", tmp_path / "whole")
    pools = [PoolFiles(file.parent) for file in (tmp_path / "whole" / "pool").rglob("manifest.json")]
    shapes = {pool.manifest.layout.fields["images"].shape for pool in pools}
    full = {"muse": {(48, 32, 1), (96, 64, 1)}, "muse-s": {(48, 32, 1)}}.get(name, {(96, 64, 1)})
    assert shapes == (full if pools else set())
