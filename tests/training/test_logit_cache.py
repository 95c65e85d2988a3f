"""`--cache-teacher-logits`: what the student reads is what the teacher says to what the student sees."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from test_contract import Assembled
from tiny_runs import tiny, write_teacher

from dfkd_fast.config.record import config_hash
from dfkd_fast.errors import UserError
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.rng import seed_phase
from dfkd_fast.training import pools
from dfkd_fast.training.logit_cache import EXTRA, LogitCache, augmentations
from dfkd_fast.training.student import StudentTrainer
from dfkd_fast.training.train import train


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "cnn.safetensors")


def trainer_of(run: Assembled, cached: int) -> StudentTrainer:
    cache = LogitCache(cached, seed=5, method=run.method, teacher=run.teacher)
    return StudentTrainer(
        run.student, method=run.method, teacher=run.teacher, pool=run.pool, runtime=run.runtime, cache=cache
    )


@pytest.mark.parametrize("name", ["nayer", "muse"])
def test_the_student_reads_what_the_teacher_says(
    name: str, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one size and of several: logits of each batch against the teacher's answers to its images, as it sees them."""
    run = Assembled(tiny(name, teacher_file, tmp_path / "run"), tmp_path)
    run.trainer = trainer_of(run, 4)
    run.round(0)
    seen: set[int] = set()
    for (batches,) in run.trainer.inputs(3):
        for batch in batches.values():
            assert batch.extras[EXTRA].shape == (len(batch.images), 4, 10)
            expected = run.teacher.answer(batch.images).logits
            torch.testing.assert_close(run.trainer.answer(batch, batch.images).logits, expected, rtol=1e-4, atol=1e-4)
            seen |= set(batch.choices.tolist())
    assert seen == {0, 1, 2, 3}

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher was asked in a student step")

    monkeypatch.setattr(FrozenNet, "__call__", asked)
    steps = []
    seed_phase(0, 0, 1, "distillation")
    run.trainer.epoch(1, run.method.config.steps_per_epoch, lambda terms, _: steps.append(terms))
    run.pool.close()
    assert len(steps) == 3


def test_augmentations_are_fixed_and_differ(teacher_file: Path, tmp_path: Path) -> None:
    """As many as there are: every crop by up to two pixels, each once; another seed, another order."""
    run = Assembled(tiny("nayer", teacher_file, tmp_path / "run"), tmp_path)
    view = trainer_of(run, 25).cache.view  # type: ignore[union-attr]
    shifts, flips = augmentations(view, torch.device("cpu"))
    assert len({tuple(shift) for shift in shifts.tolist()}) == 25
    assert shifts.min() == -2
    assert shifts.max() == 2
    assert not flips.any()
    assert not torch.equal(augmentations(replace(view, seed=6), torch.device("cpu"))[0], shifts)
    with pytest.raises(UserError, match="--cache-teacher-logits 26: choose at most 25"):
        trainer_of(run, 26)
    run.pool.close()


def test_a_resumed_run_is_the_same(teacher_file: Path, tmp_path: Path) -> None:
    """The logits lie in the pool's files, beside the images."""
    config = tiny("nayer", teacher_file, tmp_path / "whole", cache_teacher_logits=3)
    train(config)
    parts = replace(config, run_dir=tmp_path / "parts")
    train(replace(parts, stop_after_epoch=2))
    train(parts, resume=True)
    whole, resumed = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert config_hash(config) != config_hash(replace(config, cache_teacher_logits=0))


def test_the_pool_has_room_for_them(teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What chooses a pool's memory counts 3 answers of 10 float32 numbers to each image."""
    counted = []

    def noted(*arguments: Any, extra_bytes: int, **others: Any) -> Any:
        counted.append(extra_bytes)
        return make_pool(*arguments, extra_bytes=extra_bytes, **others)

    make_pool = pools.make_pool
    monkeypatch.setattr(pools, "make_pool", noted)
    train(tiny("nayer", teacher_file, tmp_path / "run", cache_teacher_logits=3, stop_after_epoch=1))
    assert counted == [3 * 10 * 4]


@pytest.mark.parametrize(
    ("name", "recipe", "message"),
    [
        ("nayer", {"crop_scale": 0.5}, "random resized crops of 0.5 and more"),
        ("nayer", {"student_crop_scale": 0.25}, "random resized crops of 0.25 and more"),
        ("hidfd", {}, "this student learns from more than logits"),
        ("zskt", {}, "this method keeps no images"),
    ],
)
def test_what_cannot_be_cached_is_said(
    name: str, recipe: dict[str, Any], message: str, teacher_file: Path, tmp_path: Path
) -> None:
    """Before the run folder is there."""
    config = tiny(name, teacher_file, tmp_path / "run", cache_teacher_logits=2)
    with pytest.raises(UserError, match=f"--cache-teacher-logits 2: {message}"):
        train(replace(config, method=replace(config.method, **recipe)))
    assert not (tmp_path / "run").exists()
