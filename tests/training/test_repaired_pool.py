"""A run goes on with the pool that a repair has left: images are in other slots now, and so are their priorities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.models.factory import load_model
from dfkd_fast.pool.disk.layout import BLOCK
from dfkd_fast.pool.disk.verify import repair
from dfkd_fast.pool.pool import Pool, PoolBatch
from dfkd_fast.training.checkpoints.checkpoint import latest_checkpoint, save_network
from dfkd_fast.training.train import train

MADE = 100
"""images in a round: fewer than a repair drops, so that slots which were filled are not"""
FLAGS = [
    *("--epochs", "4", "--warmup-epochs", "2", "--synthesis-steps", "1", "--synthesis-batch-size", str(MADE)),
    *("--buffer-size", "500", "--batch-size", "64", "--student-steps", "4", "--no-flip", "--generator-width", "8"),
    *("--teacher", "cnn", "--student", "cnn_s", "--threads", "1", "--device", "cpu"),
]


@pytest.mark.parametrize("storage", ["device", "mmap"])
def test_a_run_with_priorities_goes_on_after_a_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: str
) -> None:
    torch.manual_seed(0)
    model, info = load_model("cnn", num_classes=3, image_size=8, mean=(0.5,) * 3, std=(0.2,) * 3)
    save_network(tmp_path / "teacher.safetensors", model, info)
    made = load_config(default_config("ssdkd"), flags=[*FLAGS, "--pool.storage", storage])
    config = replace(made, teacher_weights=tmp_path / "teacher.safetensors", run_dir=tmp_path / "run")
    train(replace(config, stop_after_epoch=3))
    with open(tmp_path / "run" / "pool" / "segment-000000.bin", "r+b") as file:
        file.write(b"damage")
    assert repair(tmp_path / "run" / "pool").images == BLOCK

    held, batches, read = [], [], Pool.batches

    def watch(pool: Pool, *arguments: object) -> object:
        held.append(len(pool))
        for batch in read(pool, *arguments):  # type: ignore[arg-type]
            batches.append(batch)
            yield batch

    monkeypatch.setattr(Pool, "batches", watch)
    train(config, resume=True)
    assert "a repair has dropped 1 blocks" in capsys.readouterr().out
    assert held == [4 * MADE - BLOCK]
    assert len(batches) == 4
    for batch in batches:
        assert isinstance(batch, PoolBatch)
        assert (batch.indices < held[0]).all()
        assert (batch.labels >= 0).all()
    last = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert last is not None
    filled = last.tensors["priorities-8/leaves"][: held[0]]
    assert (filled > 0).all()
