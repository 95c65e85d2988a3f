"""A teacher learns, the same seed gives the same teacher, and the cache gives back exactly what was trained."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_fast.augment import draw_boxes
from dfkd_fast.cli.main import main
from dfkd_fast.config.data_sets import DATA_SETS
from dfkd_fast.config.recipes import TeacherRecipe
from dfkd_fast.config.record import write_config
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.data.splits import ImageSet, load_split
from dfkd_fast.data.statistics import compute_statistics
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.rng import seed_phase
from dfkd_fast.training.teachers import train as teacher_module
from dfkd_fast.training.teachers.cache import cache_folder, cached_teacher
from dfkd_fast.training.teachers.train import train_teacher

RECIPE = TeacherRecipe(epochs=2, batch_size=32, lr=0.2, crop_padding=2, flip=False)


@pytest.fixture
def runtime() -> Runtime:
    return make_runtime(device="cpu", precision="fp32", channels_last=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DFKD_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    """A few of the digits: enough to see a network learn."""
    train, test = load_split("digits", "train"), load_split("digits", "test")
    return head(train, 160), head(test, 100)


def head(images: ImageSet, count: int) -> ImageSet:
    spread = torch.linspace(0, len(images) - 1, count).round().long()
    return replace(
        images, images=images.images[spread], labels=images.labels[spread], digest=f"{images.digest}-{count}"
    )


def train(
    recipe: TeacherRecipe, digits: tuple[ImageSet, ImageSet], runtime: Runtime, name: str = "cnn_s"
) -> dict[str, Tensor]:
    model, _, _ = train_teacher(recipe, name, *digits, runtime=runtime, console="off")
    return model.state_dict()


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_the_demo_teacher_learns_the_digits(runtime: Runtime) -> None:
    """A third of the demo's epochs: far above chance on digits it has not seen."""
    recipe = TeacherRecipe(epochs=12, batch_size=64, lr=0.2, crop_padding=2, flip=False)
    train_set, test_set = load_split("digits", "train"), load_split("digits", "test")
    model, info, found = train_teacher(recipe, "cnn", train_set, test_set, runtime=runtime, console="off")
    assert found is not None
    assert found.top1 > 0.9
    assert not model.training
    assert (info.name, info.num_classes, info.image_size) == ("cnn", 10, (32, 32))
    assert (info.mean, info.std) == compute_statistics(train_set.images)


def test_seed_decides_everything(digits: tuple[ImageSet, ImageSet], runtime: Runtime) -> None:
    first = train(RECIPE, digits, runtime)
    torch.manual_seed(99)
    assert equal(first, train(RECIPE, digits, runtime))
    assert not equal(first, train(replace(RECIPE, seed=1), digits, runtime))


@pytest.mark.parametrize(
    "change",
    [{"flip": True}, {"crop_padding": 0}, {"crop_scale": 0.5}, {"label_smoothing": 0.1}, {"momentum": 0.5}],
)
def test_every_setting_counts(digits: tuple[ImageSet, ImageSet], runtime: Runtime, change: dict[str, Any]) -> None:
    assert not equal(train(RECIPE, digits, runtime), train(replace(RECIPE, **change), digits, runtime))


def test_resized_crops_are_what_the_network_sees(digits: tuple[ImageSet, ImageSet], runtime: Runtime) -> None:
    """Boxes of half of the area and more, scaled to the whole image, as torch's affine grid cuts them; no padding."""
    recipe = replace(RECIPE, crop_scale=0.5, crop_padding=9)
    model, info = teacher_module._fresh_network(recipe, "cnn_s", digits[0], None)
    trainer = teacher_module._Trainer(recipe, model.train(), info, digits[0], runtime, None, None)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    torch.manual_seed(5)
    trainer.step(torch.arange(32))
    torch.manual_seed(5)
    torch.randint(1, (32, 2))  # shifts of no padding
    top, left, height, width = draw_boxes(32, scale=0.5, device=torch.device("cpu")).unbind(1)
    assert (height * width).min() >= 0.5
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (info.mean, info.std))
    whole = (digits[0].images[:32].permute(0, 3, 1, 2) / 255 - mean) / std
    places = (torch.arange(32) + 0.5) / 32 * 2 - 1
    rows = (2 * top + height - 1)[:, None] + height[:, None] * places
    columns = (2 * left + width - 1)[:, None] + width[:, None] * places
    grid = torch.stack([columns[:, None, :].expand(-1, 32, -1), rows[:, :, None].expand(-1, -1, 32)], 3)
    expected = F.grid_sample(whole, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


def test_large_images_have_a_recipe_of_their_own() -> None:
    """From 96 pixels on, for what is left at its default; `style` settles it for any size."""
    small, large = (TeacherRecipe().for_size(size) for size in (95, 96))
    assert small == TeacherRecipe(style="small")
    values = {"batch_size": 64, "lr": 0.05, "label_smoothing": 0.1, "crop_padding": 0, "crop_scale": 0.35}
    assert large == TeacherRecipe(style="large", epochs=300, **values)
    assert large == TeacherRecipe(style="large").for_size(32) == large.for_size(224)
    assert TeacherRecipe(style="small", epochs=3).for_size(224) == TeacherRecipe(style="small", epochs=3)
    own = TeacherRecipe(epochs=9, flip=False).for_size(224)
    assert own == replace(large, epochs=9, flip=False)


@pytest.mark.parametrize(
    ("method", "preset"),
    [("msarc", "imagenette"), ("msarc", "imagenet100"), ("hidfd", "ham10000")],
)
def test_presets_of_large_images_train_their_teachers_so(method: str, preset: str) -> None:
    config = load_config(default_config(method), preset=preset, flags=["--train-teacher", "--data", "digits"])
    size = config.image_size or DATA_SETS[preset].image_size
    assert config.teacher_recipe.for_size(size) == TeacherRecipe(style="large").for_size(size)
    small = load_config(default_config("nayer"), preset="cifar10").teacher_recipe
    assert small.for_size(32) == TeacherRecipe(style="small")


@pytest.mark.parametrize("method", ["muse", "muse-s", "fast"])
@pytest.mark.parametrize("data", ["imagenette", "imagewoof"])
def test_muses_teachers_are_trained_as_it_prints(method: str, data: str) -> None:
    """A.1; crops are not published."""
    config = load_config(default_config(method), preset=data + "-fast100" * (method == "fast"))
    recipe = config.teacher_recipe.for_size(224)
    assert (recipe.lr, recipe.batch_size, recipe.epochs, recipe.momentum) == (0.1, 128, 200, 0.9)
    assert (recipe.weight_decay, recipe.label_smoothing, recipe.crop_scale) == (5e-4, 0.0, 0.35)


def test_a_default_that_is_given_holds_at_any_size(tmp_path: Path) -> None:
    """By a flag, a file, or a run's own config.toml, which tells it from what was left."""
    given = {"epochs": 200, "batch_size": 128, "lr": 0.1, "label_smoothing": 0, "crop_padding": 4, "crop_scale": 1.0}
    for key, value in given.items():
        flags = [f"--teacher-recipe.{key.replace('_', '-')}", str(value)]
        config = load_config(default_config("nayer"), flags=flags)
        assert getattr(config.teacher_recipe.for_size(224), key) == value
        padded = {"crop_scale": 1.0} if key == "crop_padding" else {}  # which resized crops would replace
        assert config.teacher_recipe.for_size(224) == replace(TeacherRecipe().for_size(224), **{key: value}, **padded)
        write_config(config, tmp_path / "config.toml")
        assert load_config(default_config("nayer"), file=tmp_path / "config.toml") == config
        (tmp_path / "own.toml").write_text(f"[teacher_recipe]\n{key} = {value}\n")
        assert load_config(default_config("nayer"), file=tmp_path / "own.toml") == config
    write_config(default_config("nayer"), tmp_path / "config.toml")
    assert load_config(default_config("nayer"), file=tmp_path / "config.toml").teacher_recipe == TeacherRecipe()
    assert TeacherRecipe(kept=("lr",)).for_size(32) == TeacherRecipe().for_size(32)
    with pytest.raises(UserError, match="--kept lrr: did you mean lr"):
        TeacherRecipe(kept=("lrr",)).keeping(())


def test_the_recipe_for_large_images_is_said(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    images = load_split("digits", "train", image_size=96)
    few = replace(images, images=images.images[:40], labels=images.labels[:40], digest="few")
    recipe = TeacherRecipe(epochs=1, batch_size=20, flip=False)
    train_teacher(recipe, "cnn_s", few, None, runtime=runtime, console="plain")
    said = "teacher cnn_s | large recipe: 1 epochs of batches of 20, lr 0.05, crops of 0.35 of the area and more, "
    assert capsys.readouterr().out.startswith(f"{said}label smoothing 0.1\n")
    made = teacher_module.made_from(recipe, "cnn_s", few, runtime)["recipe"]
    assert (made["crop_scale"], made["label_smoothing"], "style" in made) == (0.35, 0.1, False)


def test_recipes_of_before_there_was_a_choice_keep_their_teachers(
    digits: tuple[ImageSet, ImageSet], runtime: Runtime
) -> None:
    """What a cached teacher is found by has no setting that it did not have."""
    made = teacher_module.made_from(RECIPE, "cnn_s", digits[0], runtime)["recipe"]
    younger = {"style", "crop_scale", "precision", "kept"}
    assert made.keys() == {field.name for field in fields(RECIPE)} - younger


@pytest.mark.parametrize("flags", [["--crop-scale", "1.5"], ["--crop-scale", "0"], ["--label-smoothing", "2"]])
def test_shares_that_are_none(capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str]) -> None:
    command = ["teacher", "train", "cnn_s", "--data", "digits", "--out", str(tmp_path / "t.safetensors"), *flags]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dfkd-fast: --recipe{'.' + flags[0][2:]} ")
    assert error.endswith(("choose 1 or less\n", "choose more than 0\n"))


def test_equals_a_plain_training_loop(digits: tuple[ImageSet, ImageSet]) -> None:
    """Independent form: torch's own SGD and cosine, whole batches, no augmentation, in float64."""
    runtime = make_runtime(device="cpu", precision="fp64")
    images, test = digits
    recipe = replace(RECIPE, epochs=3, batch_size=160, crop_padding=0, label_smoothing=0.1)
    found, info, _ = train_teacher(recipe, "cnn_s", images, test, runtime=runtime, console="off")

    seed_phase(recipe.seed, 0, 0, "teacher")
    shape = {"num_classes": 10, "image_size": 32, "mean": info.mean, "std": info.std}
    model = load_model("cnn_s", **shape)[0].double().train()  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / 3)) / 2)
    mean, std = (torch.tensor(values).double().view(1, 3, 1, 1) for values in (info.mean, info.std))
    view = (images.images.permute(0, 3, 1, 2).double() / 255 - mean) / std
    for _ in range(3):  # the order within a whole batch changes nothing but rounding
        optimizer.zero_grad()
        F.cross_entropy(model(view), images.labels, label_smoothing=0.1).backward()
        optimizer.step()
        schedule.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_precisions(digits: tuple[ImageSet, ImageSet], precision: str) -> None:
    runtime = make_runtime(device="cpu", precision=precision, channels_last=True)
    recipe = replace(RECIPE, epochs=15)
    model, _, found = train_teacher(recipe, "cnn_s", *digits, runtime=runtime, console="off")
    assert {parameter.dtype for parameter in model.parameters()} == {runtime.master_dtype}
    assert found is not None
    assert found.top1 > 0.2  # twice chance


def test_progress_names_epoch_loss_and_result(
    digits: tuple[ImageSet, ImageSet], runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, found = train_teacher(RECIPE, "cnn_s", *digits, runtime=runtime, console="plain")
    assert found is not None
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("teacher cnn_s | 2 epochs in ")
    assert last.endswith(f"top-1 {found.top1:.4f} on 100 held-out images")


def test_training_that_diverges_says_so(digits: tuple[ImageSet, ImageSet], runtime: Runtime) -> None:
    with pytest.raises(UserError, match=r"^--teacher cnn_s: training diverged in epoch 1; lower its lr$"):
        train(replace(RECIPE, lr=1e30), digits, runtime)


def test_without_test_images_nothing_is_evaluated(digits: tuple[ImageSet, ImageSet], runtime: Runtime) -> None:
    _, _, found = train_teacher(RECIPE, "cnn_s", digits[0], None, runtime=runtime, console="off")
    assert found is None


def test_splits_must_fit(digits: tuple[ImageSet, ImageSet], runtime: Runtime) -> None:
    images, test = digits
    renamed = replace(test, class_names=(*test.class_names[:9], "ten"))
    with pytest.raises(UserError, match=r"of different classes: 9, ten$"):
        train(RECIPE, (images, renamed), runtime)


def test_precision_of_its_own(digits: tuple[ImageSet, ImageSet], runtime: Runtime) -> None:
    """A teacher trained in bf16 is the same, whatever else is computed in fp32."""
    own = train(replace(RECIPE, precision="bf16"), digits, runtime)
    assert equal(own, train(RECIPE, digits, make_runtime(device="cpu", precision="bf16", channels_last=True)))
    assert not equal(own, train(RECIPE, digits, runtime))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the networks that were really trained."""
    names: list[str] = []

    def recording(recipe: TeacherRecipe, model_name: str, *args: Any, **kwargs: Any) -> Any:
        names.append(model_name)
        return train_teacher(recipe, model_name, *args, **kwargs)

    monkeypatch.setattr(teacher_module, "train_teacher", recording)
    return names


def cached(recipe: TeacherRecipe, digits: tuple[ImageSet, ImageSet], runtime: Runtime) -> nn.Module:
    return cached_teacher(recipe, "cnn_s", *digits, runtime=runtime, console="off")[0]


def test_cache_gives_back_what_was_trained(
    digits: tuple[ImageSet, ImageSet], runtime: Runtime, trainings: list[str], cache: Path
) -> None:
    first, info = cached_teacher(RECIPE, "cnn_s", *digits, runtime=runtime, console="off")
    again, found = cached_teacher(RECIPE, "cnn_s", *digits, runtime=runtime, console="off")
    assert trainings == ["cnn_s"]
    assert found == info
    assert not first.training
    assert not again.training
    assert equal(first.state_dict(), again.state_dict())
    assert cache_folder() == cache / "teachers"
    weights, record = sorted(cache_folder().iterdir(), key=lambda path: path.suffix, reverse=True)
    assert (weights.suffix, record.suffix) == (".safetensors", ".json")
    sidecar = json.loads(record.read_text())
    assert sidecar["recipe"]["lr"] == RECIPE.lr
    assert sidecar["hash"].startswith(record.stem.rpartition("-")[2])
    _, _, evaluation = train_teacher(RECIPE, "cnn_s", *digits, runtime=runtime, console="off")
    assert evaluation is not None
    assert sidecar["top1_last_epoch"] == evaluation.top1
    assert sidecar["held_out_images"] == 100


def test_cache_tells_everything_apart(
    digits: tuple[ImageSet, ImageSet], runtime: Runtime, trainings: list[str]
) -> None:
    quick = replace(RECIPE, epochs=1)
    cached(quick, digits, runtime)
    cached(replace(quick, seed=1), digits, runtime)
    cached(replace(quick, lr=0.1), digits, runtime)
    cached(quick, (replace(digits[0], digest="other pixels"), digits[1]), runtime)
    cached(quick, digits, make_runtime(device="cpu", precision="bf16"))
    assert len(trainings) == 5
    cached(replace(quick, precision="bf16"), digits, runtime)  # the recipe's precision, as if it were the run's
    assert len(trainings) == 5
    cached(quick, (digits[0], head(digits[1], 50)), runtime)  # test images do not make the teacher
    assert len(trainings) == 5


def test_an_interrupted_training_leaves_nothing(
    digits: tuple[ImageSet, ImageSet], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(teacher_module, "train_teacher", stopped)
    with pytest.raises(KeyboardInterrupt):
        cached(RECIPE, digits, runtime)
    assert list(cache_folder().iterdir()) == []


def test_a_cache_that_cannot_be_written_is_refused_before_training(
    digits: tuple[ImageSet, ImageSet], runtime: Runtime, trainings: list[str], cache: Path
) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=f"^DFKD_FAST_CACHE {cache}: cannot be written"):
        cached(RECIPE, digits, runtime)
    assert trainings == []
