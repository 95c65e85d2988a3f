"""Whole runs of the baseline in the released codes' style: schedule, views, a small pool with priorities."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd_fast.benchmark.step_profiler import StepProfiler, calibrate_batchnorm
from dfkd_fast.config.record import write_config
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.training.checkpoints.checkpoint import load_network, save_network

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from released_style import schedule, whole_run
from released_style.ssdkd import PriorityPool

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRESETS = {"fast": "cifar10-fast5"}
TINY = [
    *(
        "--teacher",
        "cnn",
        "--student",
        "cnn_s",
        "--text",
        "orthogonal",
        "--threads",
        "1",
        "--pool.quantize",
        "truncate",
    ),
    *("--epochs", "4", "--warmup-epochs", "2", "--synthesis-batch-size", "10", "--batch-size", "8"),
    *("--generator-width", "8", "--synthesis-steps", "2", "--student-steps", "2", "--pool.quantize", "truncate"),
]
OWN = {
    "nayer": ("--warmup-rounds", "3", "--rounds", "2", "--noise-features", "8", "--generator-life", "3"),
    "muse-s": ("--full-images", "60", "--noise-features", "8", "--generator-life", "2"),
    "fast": ("--reset-epoch", "1"),
    "ssdkd": ("--buffer-size", "25"),
    "cmi": ("--bank-size", "20", "--num-negatives", "8", "--head-features", "8"),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model, info = load_model("cnn", num_classes=10, image_size=32, mean=MEAN, std=STD)
    calibrate_batchnorm(model, info)
    file = tmp_path_factory.mktemp("teacher") / "cnn.safetensors"
    save_network(file, model.eval(), info)
    return file


def config_of(name: str, teacher: Path, *flags: str) -> TrainConfig[Any]:
    given = [*TINY, *OWN[name], "--teacher-weights", str(teacher), *flags]
    return load_config(default_config(name), preset=PRESETS.get(name, "cifar10"), flags=given)


@pytest.mark.parametrize("name", schedule.METHODS)
def test_a_whole_run_makes_the_images_and_steps_that_ours_does(name: str, teacher: Path, tmp_path: Path) -> None:
    config = config_of(name, teacher)
    runtime = make_runtime(device="cpu", precision="fp32", threads=1)
    baseline, info = whole_run.make_baseline(config, tmp_path)
    ours = StepProfiler(config, info, runtime, tmp_path / "ours").method
    steps = {"synthesis_step": 0, "student_step": 0}
    for step in steps:
        count(baseline, step, steps)
    before = [value.clone() for value in baseline.student.parameters()]
    whole_run.train(baseline)
    rounds = sum(ours.rounds(epoch) for epoch in range(4))
    assert baseline.pool.written == 10 * rounds
    assert steps == {"synthesis_step": 2 * rounds, "student_step": 2 * config.method.steps_per_epoch}
    held = min(10 * rounds, 25) if name == "ssdkd" else 10 * rounds
    assert len([*(tmp_path / "pool").iterdir()]) == held
    assert all(not torch.equal(old, new) for old, new in zip(before, baseline.student.parameters(), strict=True))
    assert baseline.optimizer.param_groups[0]["lr"] == pytest.approx(config.method.student_lr_min)


def count(baseline: Any, step: str, steps: dict[str, int]) -> None:
    taken = getattr(baseline, step)

    def counted(**given: Any) -> Any:
        steps[step] += 1
        return taken(**given)

    setattr(baseline, step, counted)


def test_the_command_writes_a_student_that_can_be_evaluated(teacher: Path, tmp_path: Path) -> None:
    write_config(config_of("fast", teacher), tmp_path / "recipe.toml")
    whole_run.main([str(tmp_path / "recipe.toml"), str(tmp_path / "run")])
    model, info = load_network(tmp_path / "run" / "student.safetensors")
    assert (info.name, info.mean, info.std) == ("cnn_s", MEAN, STD)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("name", "life"), [("nayer", 3), ("nayer", 0), ("muse-s", 2), ("muse-s", 7), ("fast", None)])
def test_rounds_and_new_generators_are_those_of_ours(name: str, life: int | None, teacher: Path, tmp_path) -> None:
    more = () if life is None else ("--generator-life", str(life))
    config = config_of(name, teacher, "--epochs", "20", "--warmup-epochs", "4", *more)
    _, info = whole_run.make_baseline(config, tmp_path)
    ours = StepProfiler(config, info, make_runtime(device="cpu", precision="fp32"), tmp_path / "ours").method
    reborn = getattr(ours.scales[0] if name == "muse-s" else ours, "is_reborn", lambda epoch: False)
    for epoch in range(20):
        assert schedule.rounds(config.method, epoch, full_size=32) == ours.rounds(epoch), epoch
        if epoch and ours.rounds(epoch):  # both begin with a generator of their own
            assert schedule.begins_anew(config.method, epoch, full_size=32) == reborn(epoch), epoch


@pytest.mark.parametrize(
    ("name", "flags", "told"),
    [
        ("nayer", ("--generator-form", "printed"), "--method.generator-form printed: the baseline knows released"),
        ("ssdkd", ("--start", "fresh"), "--method.start fresh: the baseline knows fomaml"),
        ("fast", ("--cache-teacher-logits", "4"), "--cache-teacher-logits"),
        ("nayer", ("--text", "clip"), "--text clip: .* choose orthogonal or one-hot"),
    ],
)
def test_what_the_baseline_cannot_follow_is_refused(name: str, flags: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        schedule.check_followed(config_of(name, Path("none"), *flags))


def test_a_method_that_it_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="dafl: the baseline has no such method; choose one of nayer"):
        schedule.check_followed(default_config("dafl"))


def test_its_views_are_crops_of_the_image(teacher: Path, tmp_path: Path) -> None:
    """Padded crops and flips of the whole; parts are at least a quarter of it, within its range of values."""
    baseline, _ = whole_run.make_baseline(config_of("cmi", teacher), tmp_path)
    random.seed(0)
    images = torch.arange(32.0).view(1, 1, 1, 32).expand(40, 3, 32, 32) / 31
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    shifts, flips = set(), set()
    for view in baseline.augment(images) * std + mean:
        row = view[0, 16]
        flips.add(bool(row[10] > row[20]))
        row = row.flip(0) if row[10] > row[20] else row
        shifts.add(round(float(row[16] * 31)) - 16)
        torch.testing.assert_close(row[8:24], row[16] + torch.arange(-8.0, 8.0) / 31)
    assert flips == {True, False}
    assert shifts <= set(range(-4, 5))
    assert len(shifts) > 6
    spans = [float(view[0, 16].max() - view[0, 16].min()) for view in baseline.part(images) * std + mean]
    assert min(spans) >= 0.4
    assert max(spans) > 0.8
    assert len({round(span, 3) for span in spans}) > 10


def test_a_small_pool_drops_its_oldest_files_and_draws_by_priority(tmp_path: Path) -> None:
    view = {"pad": 0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    pool = PriorityPool(tmp_path, capacity=12, exponents=(0.6, 0.4), eps=1e-6, batch_size=400, workers=0, **view)
    for first in (0, 10):
        shades = torch.arange(first, first + 10).view(10, 1, 1, 1) / 255
        pool.add_first(shades.expand(10, 3, 4, 4), torch.arange(10), torch.arange(first, first + 10).float())
    assert pool.deltas == list(range(8, 20))
    assert pool.labels == [8, 9, *range(10)]
    wanted = (torch.arange(8.0, 20, dtype=torch.float64) + 1e-6) ** 0.6
    wanted /= wanted.sum()
    torch.testing.assert_close(pool.probabilities(), wanted)
    torch.testing.assert_close(pool.weights(torch.tensor([3])), (12 * wanted[3:4]) ** -0.4)
    images, labels, places = next(pool.batches())
    assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), places + 8), "places are those of the oldest first"
    assert torch.equal(labels, torch.tensor(pool.labels)[places])
    assert (places.bincount(minlength=12) / 400 - wanted).abs().max() < 0.06
    pool.update(torch.tensor([0, 2, 2]), torch.tensor([0.0, 500.0, 1.0]))
    assert pool.deltas[:3] == [0.0, 9, 500.0]
    assert next(pool.batches())[2].bincount(minlength=12).argmax() == 2


def test_a_run_has_its_teacher_and_seed(teacher: Path, tmp_path: Path) -> None:
    """The same seed gives the same student to begin with as ours, another seed another."""
    config = config_of("fast", teacher)
    first, _ = whole_run.make_baseline(config, tmp_path / "a")
    again, _ = whole_run.make_baseline(config, tmp_path / "b")
    other, _ = whole_run.make_baseline(replace(config, seed=1), tmp_path / "c")
    pairs = [[value.clone() for value in each.student.parameters()] for each in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(pairs[0], pairs[1], strict=True))
    assert not torch.equal(pairs[0][0], pairs[2][0])
    saved, _ = load_network(teacher)
    assert torch.equal(first.teacher.conv1.weight, saved.conv1.weight)
