"""Networks without BatchNorm: who needs it says so before it starts, and `--bn-weight 0` is enough to do without."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from rounds import begin_round
from safetensors.torch import load_file
from tiny_runs import SHAPE, TINY, tiny
from torch import Tensor, nn
from toy_networks import INFO

from dfkd_fast.catalog import FACTS, METHODS, MODELS
from dfkd_fast.config.sources import default_config
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import MethodConfig, Setup, weighted_sum
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.statistics import PoolStatistics
from dfkd_fast.models.teacher import FrozenNet, frozen_alias
from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_fast.text.label_embeddings import label_embeddings
from dfkd_fast.training.assemble import load_method
from dfkd_fast.training.checkpoints.checkpoint import save_network
from dfkd_fast.training.judge import check_teacher, judge_teacher
from dfkd_fast.training.train import train

WITHOUT = [name for name in METHODS if FACTS[name].batchnorm == "or --bn-weight 0"]
NEVER = [name for name in METHODS if FACTS[name].batchnorm == "no"]
SETTINGS = {"bn_weight": 0.0, "feature_layers": ("conv2",)}


class GroupNormNet(nn.Module):
    """Two convolutions with GroupNorm, pooling, one Linear."""

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(in_chans, 8, 3, padding=1, stride=2), nn.GroupNorm(2, 8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.GroupNorm(2, 8)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc(self.pool(x).flatten(1))


def group_norm(num_classes: int, *, in_chans: int, image_size: int) -> nn.Module:
    return GroupNormNet(num_classes, in_chans)


def recipe(name: str) -> MethodConfig:
    """A small recipe without the BatchNorm term."""
    config = default_config(name).method
    names = {item.name for item in fields(config)}
    return replace(config, **{key: value for key, value in (TINY | SETTINGS).items() if key in names})


@pytest.mark.parametrize("name", [*WITHOUT, *NEVER])
def test_a_whole_run_without_any_batchnorm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither teacher nor student has any; without the flag, where a method has it, the run does not start."""
    monkeypatch.setitem(MODELS, "group_norm", (f"{__name__}:group_norm", "test network"))
    model, info = load_model("group_norm", **SHAPE)
    save_network(tmp_path / "teacher.safetensors", model, info)
    config = tiny(name, tmp_path / "teacher.safetensors", tmp_path / "run")
    config = replace(config, teacher="group_norm", student="group_norm")
    if name in WITHOUT:
        with pytest.raises(UserError, match=f"^--teacher group_norm: {name} matches BatchNorm statistics"):
            train(config)
    assert not (tmp_path / "run").exists()
    settings = {key: value for key, value in SETTINGS.items() if hasattr(config.method, key)}
    folder = train(replace(config, method=replace(config.method, **settings)))
    expected = model.state_dict()
    found = load_file(folder / "student.safetensors")
    inner = {key.removeprefix("body.model.") for key in found}  # HiDFD's student lies within what is deployed
    assert expected.keys() <= inner if "classifier.weight" in found else expected.keys() == inner
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("name", WITHOUT)
def test_who_matches_statistics_says_what_to_do(name: str) -> None:
    config = replace(default_config(name), teacher="timm:vit_tiny", method=default_config(name).method)
    network = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.BatchNorm1d(3))
    with pytest.raises(UserError) as error:
        check_teacher(network, INFO, load_method(name), config, None)
    text = str(error.value)
    assert text.startswith(f"--teacher timm:vit_tiny: {name} matches BatchNorm statistics and this network has none; ")
    assert "give --method.bn-weight 0" in text
    assert all(other in text for other in METHODS if FACTS[other].batchnorm == "no")
    check_teacher(network, INFO, load_method(name), replace(config, method=recipe(name)), None)


def test_frozen_batchnorm_has_statistics(runtime: Runtime) -> None:
    """torchvision's FrozenBatchNorm2d, which detection backbones have: what hands out moments is no refusal."""
    ensure_importable()
    from torchvision.ops import FrozenBatchNorm2d

    network = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    check_teacher(network, INFO, load_method("nayer"), default_config("nayer"), None)
    assert len(FrozenNet(network.double().eval(), INFO, runtime).targets) == 1


def test_layers_that_no_term_reads_are_named(runtime: Runtime) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.append(nn.BatchNorm1d(4))
    teacher = FrozenNet(network.double().eval(), INFO, runtime)
    verdict = judge_teacher(teacher, None, default_config("nayer"), runtime)
    unread = "teacher toy: 1 layers unmatched: 4: no moments, BatchNorm1d does not read (B, C, H, W)"
    assert verdict.lines[1] == unread.replace("toy", INFO.name)


def test_alexnet(runtime: Runtime) -> None:
    """torchvision's, whose classifier is no single layer: NAYER runs, MUSE says which term to leave out."""
    info = replace(INFO, name="tv:alexnet", image_size=64)
    model, _ = load_model("tv:alexnet", num_classes=4, image_size=64, mean=info.mean, std=info.std)
    student = GroupNormNet(4).double()
    teacher = FrozenNet(model.double(), info, runtime)
    setup = Setup(teacher, frozen_alias(student), info, label_embeddings("orthogonal", 4, dim=8))
    nayer = runtime.place(load_method("nayer")(replace(recipe("nayer"), synthesis_batch_size=4), setup))
    variant = begin_round(nayer, 2)
    _, terms = nayer.step(**variant)
    assert terms.keys() == {"ce", "bn", "adv"}
    weighted_sum(terms, nayer.config).backward()
    assert all(value.grad.isfinite().all() for value in nayer.generator.parameters())
    assert all(value.grad.abs().max() > 0 for value in nayer.generator.decoder.parameters())
    muse, config = load_method("muse-s"), replace(recipe("muse-s"), image_sizes=(64,))
    with pytest.raises(UserError, match=r"^--teacher tv:alexnet: its classifier is not one linear layer .* weight 0$"):
        muse(config, setup)
    muse(replace(config, cam_weight=0.0), setup)


def test_a_transformer_by_its_timm_name(tmp_path: Path) -> None:
    """Teacher and student for 32 pixels, which is no size of theirs."""
    model, info = load_model("timm:test_vit", **SHAPE)
    save_network(tmp_path / "teacher.safetensors", model, info)
    config = tiny("nayer", tmp_path / "teacher.safetensors", tmp_path / "run")
    config = replace(config, teacher="timm:test_vit", student="timm:test_vit")
    folder = train(replace(config, method=replace(config.method, bn_weight=0.0)))
    assert load_file(folder / "student.safetensors").keys() == model.state_dict().keys()


def test_no_statistics_are_no_distance() -> None:
    statistics = PoolStatistics([], 0.9)
    assert statistics.loss([]).item() == 0.0
    statistics.update()
    assert math.isclose(statistics.weight.item(), 0.9, rel_tol=1e-6)


def test_cmi_without_batchnorm_asks_for_its_layers(runtime: Runtime) -> None:
    setup = Setup(FrozenNet(GroupNormNet(4).double(), INFO, runtime), GroupNormNet(4), INFO, torch.eye(4))
    with pytest.raises(UserError, match=r"^--method.feature-layers: missing; "):
        load_method("cmi")(replace(recipe("cmi"), feature_layers=()), setup)
