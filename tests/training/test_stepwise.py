"""The stepwise loop: whose steps come when, one phase and one boundary an epoch, what a run without a pool leaves."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.training.checkpoints.checkpoint import save_network
from dfkd_fast.training.inner import InnerLoop
from dfkd_fast.training.stepwise import StepwiseLoop, Stopwatch
from dfkd_fast.training.student import FreshTrainer
from dfkd_fast.training.train import train

FLAGS = [
    *(
        "--epochs",
        "4",
        "--warmup-epochs",
        "1",
        "--synthesis-batch-size",
        "6",
        "--batch-size",
        "5",
        "--student-steps",
        "5",
    ),
    *("--student-steps-per-round", "2", "--generator-width", "8", "--latent-dim", "4", "--synthesis-steps", "2"),
    *("--teacher", "cnn", "--student", "cnn_s", "--threads", "1", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model, info = load_model("cnn", num_classes=3, image_size=8, mean=(0.5,) * 3, std=(0.2,) * 3)
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_network(file, model, info)
    return file


def config_of(teacher: Path, folder: Path, *flags: str) -> TrainConfig[Any]:
    return replace(load_config(default_config("dfq"), flags=[*FLAGS, *flags]), teacher_weights=teacher, run_dir=folder)


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig[Any]:
    config = config_of(teacher, tmp_path_factory.mktemp("whole") / "run")
    train(config)
    return config


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_turns(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of two generator steps; five student steps over three of them; the generator's modes; none in warm-up."""
    turns: list[str] = []
    steps, fresh = InnerLoop.step, FreshTrainer.step

    def synthesis(self: InnerLoop, variant: Any) -> Any:
        turns.append("G" if self.inner.step.__self__.generator.training else "g")
        return steps(self, variant)

    def student(self: FreshTrainer, *inputs: Any) -> Any:
        turns.append("S" if self.method.generator.training else "s")
        assert self.student.training
        return fresh(self, *inputs)

    monkeypatch.setattr(InnerLoop, "step", synthesis)
    monkeypatch.setattr(FreshTrainer, "step", student)
    train(config_of(teacher, tmp_path / "eval", "--epochs", "2"))
    assert "".join(turns) == "GGGGGG" + "GGsGGssGGss"
    turns.clear()
    train(config_of(teacher, tmp_path / "train", "--epochs", "2", "--sampling", "train"))
    assert "".join(turns) == "GGGGGG" + "GGSGGSSGGSS"


def test_one_phase_an_epoch(whole: TrainConfig[Any]) -> None:
    lines = records(whole.run_folder)
    assert [(line["epoch"], line["phase"], line["steps"]) for line in lines] == [
        (0, "synthesis", 6),
        *((epoch, "distillation", 11) for epoch in (1, 2, 3)),
    ]
    assert {"ce", "balance", "bn", "adv", "kd"} <= lines[-1].keys()
    assert not {"adv", "kd"} & lines[0].keys()
    record = json.loads((whole.run_folder / "run.json").read_text())
    assert (record["generator_steps"], record["student_steps"], record["images_synthesized"]) == (24, 15, 75)
    for phase in ("synthesis", "distillation"):
        assert record[f"{phase}_seconds"] > 0
        assert record[f"{phase}_flops"] > 0
    total = sum(line["seconds"] for line in lines)
    assert record["synthesis_seconds"] + record["distillation_seconds"] == pytest.approx(total, rel=0.2)


def test_no_pool_but_pictures(whole: TrainConfig[Any]) -> None:
    folder = whole.run_folder
    assert not (folder / "pool").exists()
    assert [path.name for path in sorted((folder / "images").iterdir())] == [
        f"epoch-000{epoch}.png" for epoch in (1, 2, 4)
    ]


@pytest.mark.parametrize("epochs", [1, 2])
def test_resume_at_every_boundary(whole: TrainConfig[Any], tmp_path: Path, epochs: int) -> None:
    """After the warm-up, and between two epochs: the same student and generator, the optimisers' moments included."""
    pieces = replace(whole, run_dir=tmp_path / "run")
    train(replace(pieces, stop_after_epoch=epochs))
    train(pieces, resume=True)
    last = [sorted((folder / "checkpoints").iterdir())[-1] for folder in (whole.run_folder, tmp_path / "run")]
    expected, found = (load_file(folder / "state.safetensors") for folder in last)
    assert {key.split("/")[0] for key in expected} == {"student", "method", "optimizer", "synthesis_optimizer-0"}
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert [line["phase"] for line in records(whole.run_folder)] == [
        line["phase"] for line in records(tmp_path / "run")
    ]


def test_pool_flags_have_no_effect(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config_of(teacher, tmp_path / "run", "--epochs", "2", "--pool.capacity", "1", "--pool.policy", "ring"))
    line = "no pool: each student batch is made anew; --pool.capacity, --pool.policy: without effect"
    assert line in capsys.readouterr().out.splitlines()


def test_divergence_names_both_rates(teacher: Path, tmp_path: Path) -> None:
    """Generator and student drive each other: nobody can tell whose numbers went first."""
    message = r"^--method\.student-lr 1e\+38 or --method\.generator-lr 0\.001: distillation of epoch 2 diverged"
    with pytest.raises(UserError, match=message):
        train(config_of(teacher, tmp_path / "run", "--student-lr", "1e38"))
    with pytest.raises(UserError, match=r"^--method\.generator-lr 1e\+38: synthesis of epoch 1 diverged"):
        train(config_of(teacher, tmp_path / "other", "--generator-lr", "1e38"))


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        (InnerLoop, "--method.synthesis-batch-size 6: synthesis of epoch 2 ran out of memory"),
        (FreshTrainer, "--method.batch-size 5: distillation of epoch 2 ran out of memory"),
    ],
)
def test_out_of_memory_names_the_batch(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, message: str
) -> None:
    def fail(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    config = config_of(teacher, tmp_path / "run")
    train(replace(config, stop_after_epoch=1))
    monkeypatch.setattr(owner, "step", fail)
    with pytest.raises(UserError, match=message):
        train(config, resume=True)


def test_stopwatch_adds_up_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([10.0, 11.5, 20.0, 22.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    watch = Stopwatch(make_runtime(device="cpu"))
    for _ in range(2):
        with watch.running():
            pass
    assert watch.seconds() == 3.5
    assert StepwiseLoop.image_phases == ("synthesis", "distillation")
