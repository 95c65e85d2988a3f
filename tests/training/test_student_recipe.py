"""Switches of the student's steps: mixtures and who answers them, optimisers, rates for each step; who refuses them."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from test_contract import Assembled
from tiny_runs import same, tiny, write_teacher

from dfkd_fast.augment import Mix, mixed
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.record import config_hash
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.recipe import MethodConfig
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.parallel.global_batch import LOCAL_BATCH
from dfkd_fast.training import student_recipe
from dfkd_fast.training.logit_cache import LogitCache
from dfkd_fast.training.records import run_record
from dfkd_fast.training.student import StudentTrainer
from dfkd_fast.training.student_recipe import combined, student_lr
from dfkd_fast.training.train import train

SWITCHES: dict[str, Any] = {
    "student_mix": "both",
    "student_mix_alpha": 0.5,
    "student_optimizer": "muon",
    "student_lr": 1e-3,
    "student_schedule": "one-cycle",
}


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "cnn.safetensors")


def switched(config: TrainConfig[Any], **recipe: Any) -> TrainConfig[Any]:
    return replace(config, method=replace(config.method, **recipe))


def test_off_is_as_ever(teacher_file: Path, tmp_path: Path) -> None:
    """Recipes of before have their hash; each switch changes it."""
    config = tiny("nayer", teacher_file, tmp_path / "run")
    off = {"student_mix": "none", "student_mix_alpha": 1.0, "student_schedule": "epochs"}
    assert config_hash(switched(config, **off)) == config_hash(config)
    assert len({config_hash(switched(config, **{key: value})) for key, value in SWITCHES.items()}) == len(SWITCHES)


@pytest.mark.parametrize("name", ["nayer", "dafl"])
def test_the_teacher_answers_the_mixture(
    name: str, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images from a pool, and of those that a step makes: both networks see the same mixture of the batch."""
    config = switched(tiny(name, teacher_file, tmp_path / "run"), student_mix="cutmix", student_crop_scale=1.0)
    run = Assembled(config, tmp_path / "pool")
    run.round(0)
    seen: dict[str, list[torch.Tensor]] = {"whole": [], "teacher": [], "student": []}
    method, answer = run.method, run.teacher.answer
    monkeypatch.setattr(method, "student_view", noting(method.student_view, seen["whole"]))
    monkeypatch.setattr(
        run.teacher, "answer", lambda view, **more: seen["teacher"].append(view) or answer(view, **more)
    )
    run.student.register_forward_pre_hook(lambda _, inputs: seen["student"].append(inputs[0]))
    run.trainer.begin_epoch(1)
    run.trainer.steps(1, lambda terms, _: None)
    run.pool.close()
    assert len(seen["whole"]) == len(method.pools())
    for whole, teacher, student in zip(*seen.values(), strict=True):
        assert torch.equal(teacher, student)
        own = (teacher == whole).all(dim=1)  # each pixel is the image's own or another image's
        assert bool(((teacher[:, None] == whole[None]).all(dim=2).any(dim=1) | own).all())
        assert 0 < float(own.float().mean()) < 1


def noting(function: Any, into: list[torch.Tensor]) -> Any:
    def noted(batch: Any) -> torch.Tensor:
        into.append(function(batch))
        return into[-1]

    return noted


def test_cached_answers_are_combined(teacher_file: Path, tmp_path: Path) -> None:
    """Softmaxes at the temperature by both images' shares, against float64; printed, since it is an approximation."""
    config = switched(tiny("nayer", teacher_file, tmp_path / "run"), student_mix="both")
    run = Assembled(config, tmp_path / "pool")
    cache = LogitCache(4, seed=5, method=run.method, teacher=run.teacher)
    run.trainer = StudentTrainer(
        run.student, method=run.method, teacher=run.teacher, pool=run.pool, runtime=run.runtime, cache=cache
    )
    run.round(0)
    ((batches,),) = run.trainer.inputs(1)
    (batch,) = batches.values()
    torch.manual_seed(1)
    mix = run.trainer._mix(ImageSize.of(32))
    assert mix is not None
    found = run.trainer.answer(batch, mixed(batch.images, mix), mix).logits.double()
    alone, shares, temperature = cache.pick(batch).logits.double(), mix.shares.double()[:, None], 20.0
    soft = F.softmax(alone / temperature, dim=1)
    expected = shares * soft + (1 - shares) * soft[mix.partners]
    torch.testing.assert_close(F.softmax(found / temperature, dim=1), expected, rtol=1e-5, atol=1e-7)
    run.trainer.begin_epoch(1)
    terms = []
    run.trainer.steps(3, lambda found, _: terms.append(found["kd"]))
    run.pool.close()
    assert len(terms) == 3


def test_combined_answers_keep_bfloat16s_precision() -> None:
    """They are centred: logits of 20 log 0.1 would be rounded to quarters."""
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    mix = Mix(torch.arange(6).roll(1), torch.full((6, 1, 2, 2), 0.25))
    found = combined(NetOutput(logits), mix, MethodConfig(), LOCAL_BATCH).logits
    assert found.dtype == torch.bfloat16
    expected = 0.25 * logits.double() + 0.75 * logits.double().roll(1, 0)  # at T = 20 nearly so, up to a constant
    expected -= expected.mean(dim=1, keepdim=True)
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("cached", [0, 3])
def test_a_resumed_run_is_the_same(
    cached: int, teacher_file: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All switches at once, stopped within the schedule; a line says where answers are approximated."""
    monkeypatch.setattr(run_record, "matmul_rate", lambda runtime: 1.0)  # measuring it takes as long as a run
    config = switched(tiny("nayer", teacher_file, tmp_path / "whole", cache_teacher_logits=cached), **SWITCHES)
    student_recipe.note.cache_clear()
    train(config)
    said = "--student-mix both: the answer to a mixture is the mixture of the cached answers" in capsys.readouterr().out
    assert said == bool(cached)
    parts = replace(config, run_dir=tmp_path / "parts")
    train(replace(parts, stop_after_epoch=2))
    train(parts, resume=True)
    assert same(tmp_path / "parts", tmp_path / "whole")
    student = load_file(tmp_path / "whole" / "student.safetensors")
    assert all(value.isfinite().all() for value in student.values() if value.is_floating_point())


def test_one_cycle_rises_and_falls() -> None:
    """Against the formula; the same for epochs of any length."""
    base: dict[str, Any] = {"epochs": 12, "warmup_epochs": 2, "student_lr": 0.5, "student_lr_min": 0.1}
    config = MethodConfig(**base, student_steps=8, student_schedule="one-cycle")
    for distilled, step, at in ((0, 0, 0.0), (1, 4, 1.5), (2, 4, 2.5), (5, 2, 5.25), (9, 7, 9.875)):
        rise, fall = at / 2.5, (at - 2.5) / 7.5
        risen = 0.02 + 0.48 * rise
        fallen = 0.1 + 0.4 * (1 + math.cos(math.pi * fall)) / 2
        assert student_lr(config, 2 + distilled, step) == pytest.approx(risen if at < 2.5 else fallen)
    assert student_lr(replace(config, student_ramp_share=0.5), 7) == 0.5
    assert student_lr(replace(config, student_ramp_epochs=4), 6) == 0.5
    assert student_lr(replace(config, student_steps=80), 4, 40) == pytest.approx(student_lr(config, 4, 4))


@pytest.mark.parametrize("schedule", ["epochs", "one-cycle"])
@pytest.mark.parametrize("name", ["nayer", "dafl"])
def test_steps_have_their_rates(name: str, schedule: str, teacher_file: Path, tmp_path: Path) -> None:
    """The optimiser's, as a method of either loop takes its steps; stepwise ones in several parts of an epoch."""
    config = switched(tiny(name, teacher_file, tmp_path / name), student_schedule=schedule)
    run = Assembled(config, tmp_path / "pool")
    rates: list[float] = []
    run.round(0)
    run.trainer.begin_epoch(1)
    for count in (1, 2):
        run.trainer.steps(count, lambda *_: rates.append(run.trainer.optimizer.param_groups[0]["lr"]))
    run.pool.close()
    expected = [student_lr(config.method, 1, step) for step in range(3)]
    assert rates == expected
    assert len(set(rates)) == (3 if schedule == "one-cycle" else 1)


@pytest.mark.parametrize(
    ("name", "recipe", "message"),
    [
        ("muse", {"student_mix": "cutmix"}, "--student-mix cutmix: this student learns from more than logits"),
        ("zskt", {"student_mix": "both"}, "--student-mix both: this student learns from more than logits"),
        ("nayer", {"student_mix": "both", "batch_size": 1}, "--student-mix both: a batch of one image"),
        ("nayer", {"student_mix_alpha": 0.0}, "--method.student-mix-alpha 0.0: choose more than 0"),
        (
            "nayer",
            {"student_schedule": "one-cycle", "student_lr_steps": (3, 4)},
            "--method.student-schedule one-cycle: has no room for --method.student-lr-steps 3 4",
        ),
        ("nayer", {"student_optimizer": "nesterov", "student_momentum": 0.0}, "--method.student-momentum 0: Nesterov"),
    ],
)
def test_what_does_not_go_together_is_said(
    name: str, recipe: dict[str, Any], message: str, teacher_file: Path, tmp_path: Path
) -> None:
    """Before the run folder is there."""
    with pytest.raises(UserError, match=f"^{message}"):
        train(switched(tiny(name, teacher_file, tmp_path / "run"), **recipe))
    assert not (tmp_path / "run").exists()


def test_labels_have_no_mixtures(teacher_file: Path, tmp_path: Path) -> None:
    """KD with a label term; without it the teacher's answers suffice."""
    config = switched(
        tiny("kd", teacher_file, tmp_path / "run", collected="digits"), student_mix="mixup", ce_weight=0.0
    )
    run = Assembled(config, tmp_path / "pool")
    check(run)
    run.method.config = replace(config.method, ce_weight=0.5)
    with pytest.raises(UserError, match=r"^--student-mix mixup: this student also learns from labels"):
        check(run)
    run.pool.close()


def test_muon_and_a_loss_scale_are_refused(teacher_file: Path, tmp_path: Path) -> None:
    run = Assembled(switched(tiny("nayer", teacher_file, tmp_path / "run"), **SWITCHES), tmp_path / "pool")
    check(run)
    run.runtime = replace(make_runtime(device="cpu"), precision="fp16")
    with pytest.raises(UserError, match=r"^--student-optimizer muon: knows no loss scale.*choose bf16 or fp32$"):
        check(run)
    run.pool.close()


def test_a_rate_for_sgd_is_noticed(teacher_file: Path, tmp_path: Path, capsys: Any) -> None:
    student_recipe.note.cache_clear()
    config = switched(tiny("nayer", teacher_file, tmp_path / "run"), student_optimizer="adamw", student_lr=0.2)
    run = Assembled(config, tmp_path / "pool")
    check(run)
    run.pool.close()
    line = "--student-lr 0.2: a rate for SGD; --student-optimizer adamw mostly wants about 0.001"
    assert line in capsys.readouterr().out


def check(run: Assembled) -> None:
    student_recipe.check_student(run.method, run.teacher, run.runtime, is_cached=False)
