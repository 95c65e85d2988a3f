"""MUSE from and to vision transformers: whole runs at digits' size, steps that can be captured, evaluation in full."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_contract
import torch
from rounds import begin_round
from safetensors.torch import load_file
from sync_free import sync_free
from tape import Tape
from test_contract import Assembled
from test_replay import longer, results
from tiny_runs import SHAPE, tiny

from dfkd_fast.catalog import MODELS
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.vit import is_vit
from dfkd_fast.training import capture, inner, student
from dfkd_fast.training.capture import EagerSteps
from dfkd_fast.training.checkpoints.checkpoint import save_network
from dfkd_fast.training.train import train


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "vit", ("vit_networks:vit", "test network"))


def config_of(method: str, networks: tuple[str, str], folder: Path, **settings: Any) -> TrainConfig[Any]:
    """A few steps from a teacher with random weights; 28 pixels are 7 x 7 of its 8 x 8 patches."""
    torch.manual_seed(0)
    model, info = load_model(networks[0], **SHAPE)
    save_network(folder / "teacher.safetensors", model, info)
    config = tiny(method, folder / "teacher.safetensors", folder / "run")
    recipe = replace(config.method, **({"bn_weight": 0.0} | settings))
    return replace(config, teacher=networks[0], student=networks[1], method=recipe)


@pytest.mark.parametrize(
    ("method", "networks", "sizes"),
    [
        ("muse-s", ("vit", "vit"), (28,)),
        ("muse", ("vit", "vit"), (24, 28)),
        ("muse-s", ("cnn", "vit"), (28,)),
        ("muse-s", ("vit", "cnn_s"), (28,)),
    ],
)
def test_a_whole_run(method: str, networks: tuple[str, str], sizes: tuple[int, ...], tmp_path: Path) -> None:
    """Trained at low resolution; what is saved is the plain network, which is evaluated at its own."""
    bn_weight = 10.0 if networks[0] == "cnn" else 0.0
    folder = train(config_of(method, networks, tmp_path, image_sizes=sizes, bn_weight=bn_weight))
    assert json.loads((folder / "run.json").read_text())["complete"]
    trained = load_file(folder / "student.safetensors")
    model, _ = load_model(networks[1], **SHAPE)
    assert trained.keys() == model.state_dict().keys()
    model.load_state_dict(trained)
    assert is_vit(model) == (networks[1] == "vit")
    assert model.eval()(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_class_centres_are_class_tokens(tmp_path: Path) -> None:
    config = replace(config_of("muse-s", ("vit", "vit"), tmp_path), text="class-centre")
    run = Assembled(config, tmp_path / "pool")
    run.round(0)
    assert run.method.embedding.centres.shape == (10, 24)
    assert run.method.embedding.known.any()
    run.pool.close()


def test_steps_never_wait_and_can_be_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured steps draw new windows as plain ones do, on the device."""
    config = config_of("muse", ("vit", "vit"), tmp_path, image_sizes=(24, 28))
    run = Assembled(config, tmp_path / "pool")
    run.round(0)
    for scale, engine in zip(run.method.scales, run.rounds.engines, strict=True):
        variant = begin_round(scale, 2)
        engine.step(variant)
        with sync_free():
            engine.step(variant)
    run.pool.close()
    monkeypatch.setattr(capture, "CudaGraphs", lambda _device: Tape())
    monkeypatch.setattr(test_contract, "make_runtime", lambda **given: replace(make_runtime(**given), graphs=True))
    replayed = results(longer(config), tmp_path / "replayed")
    for module in (inner, student):
        monkeypatch.setattr(module, "make_runner", lambda step, _runtime: EagerSteps(step))
    expected = results(longer(config), tmp_path / "eager")
    assert replayed.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(replayed[key], value)] == []


def test_sizes_that_are_no_patches_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--method.image-sizes 30: vit: sees images of 4 to 32 pixels in steps of 4"):
        train(config_of("muse-s", ("vit", "vit"), tmp_path, image_sizes=(30,)))
    with pytest.raises(UserError, match=r"^--method.image-sizes 26: --student VisionTransformer: sees images of "):
        train(config_of("muse-s", ("cnn", "vit"), tmp_path, image_sizes=(26,), bn_weight=10.0))
    assert not (tmp_path / "run").exists()


def test_the_preset_is_the_papers() -> None:
    """Table 6's row for ImageNet, 112 pixels, without the BatchNorm term; one pass over the pool an epoch."""
    config = load_config(default_config("muse-s"), preset="imagenet-deit")
    recipe = config.method
    assert (recipe.image_sizes, recipe.bn_weight, recipe.cam_weight) == ((112,), 0.0, 0.1)
    assert (recipe.synthesis_batch_size, recipe.batch_size, recipe.synthesis_steps, recipe.rounds) == (
        200,
        200,
        100,
        20,
    )
    assert (recipe.epochs, recipe.warmup_epochs, recipe.data_ratio) == (400, 40, 1.0)
    low_resolution = recipe.full_images * recipe.data_ratio / 100 * (224 / 112) ** 2
    assert recipe.student_steps * recipe.data_ratio / 100 * recipe.batch_size == low_resolution
    large = load_config(default_config("muse-s"), preset="imagenet-deit", flags=["--data-ratio", "5"]).method
    assert large.data_ratio == 5.0
