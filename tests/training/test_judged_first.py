"""A teacher's accuracy, and the warning that it is near chance, stand in the output before any step is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfkd_fast.cli.main import main
from dfkd_fast.models.factory import load_model
from dfkd_fast.training import run
from dfkd_fast.training.checkpoints.checkpoint import save_network


@pytest.mark.parametrize("method", ["dafl", "nayer"])
def test_a_teacher_at_chance_is_known_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    torch.manual_seed(0)
    model, info = load_model("cnn", num_classes=10, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    save_network(tmp_path / "t.safetensors", model, info, top1=0.9)
    said: list[str] = []

    def spend(*_: object) -> None:
        said.append(capsys.readouterr().out)
        raise KeyError("the first step")

    for loop in (run.AlternatingLoop, run.StepwiseLoop):
        monkeypatch.setattr(loop, "run", lambda self, **_: spend())
    teacher = ["--teacher", "cnn", "--teacher-weights", str(tmp_path / "t.safetensors"), "--student", "cnn_s"]
    with pytest.raises(KeyError, match="the first step"):
        main(["train", method, *teacher, "--data", "digits", "--device", "cpu", "--run-dir", str(tmp_path / "run")])
    (output,) = said
    assert "teacher top-1 0." in output
    assert "warning: that is near chance, 0.1000 for 10 classes" in output
