"""`dfkd-fast bench methods`, and the baseline that it races."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dfkd_fast.benchmark import methods
from dfkd_fast.benchmark.methods import plot
from dfkd_fast.benchmark.step_timer import TimingWindow
from dfkd_fast.catalog import BENCH_TARGETS, METHODS, presets
from dfkd_fast.cli.main import main
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.training.records.run_record import processor

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))

from predict import time_baseline  # noqa: E402
from released_style.baseline import Baseline  # noqa: E402
from released_style.cmi import CmiBaseline  # noqa: E402
from released_style.networks import StatisticsHook  # noqa: E402
from released_style.recipe import Recipe, recipe_of  # noqa: E402


@pytest.fixture
def runtime() -> Runtime:
    return make_runtime(device="cpu", precision="fp32", threads=1)


def recipe(**settings: object) -> Recipe:
    sizes = {"num_classes": 4, "image_size": 16, "full_size": 16, "synthesis_batch_size": 10, "batch_size": 8}
    return Recipe(teacher="cnn", student="cnn_s", noise_features=16, student_lr=0.01, **sizes | settings)


@pytest.mark.parametrize("terms", [{}, {"cam_weight": 0.1, "aed_weight": 5.0, "ed_weight": 10.0, "adamw": True}])
def test_baseline_runs_a_round_and_a_student_step(tmp_path: Path, terms: dict[str, object]) -> None:
    torch.manual_seed(0)
    baseline = Baseline(recipe(**terms), tmp_path, workers=0)
    before = [parameter.clone() for parameter in baseline.generator.parameters()]
    baseline.begin_round()
    assert baseline.labels.tolist()[:8] == [0, 1, 2, 3] * 2
    assert "ce" in baseline.synthesis_step()
    assert any(not torch.equal(a, b) for a, b in zip(before, baseline.generator.parameters(), strict=True))
    wasted = [parameter.grad for network in (baseline.teacher, baseline.student) for parameter in network.parameters()]
    assert all(grad is not None for grad in wasted), "the released codes compute these, and so does their baseline"
    baseline.end_round()
    assert len(list(tmp_path.glob("*.png"))) == 10
    weights = [parameter.clone() for parameter in baseline.student.parameters()]
    loss, first, fifth = baseline.student_step()
    assert loss > 0
    assert 0 <= first <= fifth <= 1
    assert any(not torch.equal(a, b) for a, b in zip(weights, baseline.student.parameters(), strict=True))


@pytest.mark.parametrize("amp", [False, True])
def test_cmis_baseline_learns_generator_latents_and_head(tmp_path: Path, amp: bool) -> None:
    """One step moves all three, in fp32 and under bf16 autocast; the student is taught as by the others."""
    torch.manual_seed(0)
    flags = ("--bank-size", "32", "--num-negatives", "8", "--head-features", "6", "--latent-dim", "5")
    config = load_config(default_config("cmi"), flags=flags).method
    baseline = CmiBaseline(recipe(config=config, latent_dim=5), tmp_path, workers=0, amp=amp)
    baseline.written = 32
    baseline.begin_round()
    parts = {"generator": baseline.generator.stem.weight, "latents": baseline.latents, "head": baseline.head[0].weight}
    before = {name: value.detach().clone() for name, value in parts.items()}
    assert "cr" in baseline.synthesis_step()
    for name, value in parts.items():
        assert not torch.equal(before[name], value), name
    baseline.end_round()
    assert all(math.isfinite(value) for value in baseline.student_step())


def test_baseline_hook_measures_what_our_loss_does() -> None:
    torch.manual_seed(0)
    layer, maps = torch.nn.BatchNorm2d(3).eval(), torch.randn(5, 3, 4, 4)
    hook = StatisticsHook(layer, momentum=0.9)
    layer(maps)
    mean, var = maps.mean((0, 2, 3)), maps.var((0, 2, 3), unbiased=False)
    assert torch.allclose(hook.distance, mean.norm() + (1 - var).norm())
    hook.update()
    other = torch.randn(5, 3, 4, 4)
    layer(other)
    mixed = 0.9 * mean + 0.1 * other.mean((0, 2, 3)), 0.9 * var + 0.1 * other.var((0, 2, 3), unbiased=False)
    assert torch.allclose(hook.distance, mixed[0].norm() + (1 - mixed[1]).norm())


def test_recipe_of_a_preset() -> None:
    target = methods.read_target("muse-s/imagenet")
    found = recipe_of(target.config, num_classes=1000, full_size=224)
    assert (found.image_size, found.full_size, found.synthesis_batch_size, found.adamw) == (112, 224, 200, True)
    assert (found.cam_weight, found.aed_weight, found.ed_weight) == (0.1, 5.0, 10.0)


def test_every_target_of_the_default_exists_and_published_hours_are_the_presets() -> None:
    targets = {name: methods.read_target(name) for name in BENCH_TARGETS}
    assert targets["nayer/cifar100"].published_hours == 7.22
    assert targets["muse-s/imagenet"].published_hours == 31.4
    assert all(target.published_hours for target in targets.values())


def test_every_preset_can_be_measured() -> None:
    """Its classes and pixels are the preset's own, or its data set's: ImageNet100 is not ImageNet."""
    targets = {
        f"{method}/{name}": methods.read_target(f"{method}/{name}") for method in METHODS for name in presets(method)
    }
    shapes = {name: (target.info.num_classes, target.info.image_size) for name, target in targets.items()}
    assert shapes["msarc/imagenet100"] == (100, (224, 224))
    assert shapes["msarc/bloodmnist"] == (8, (64, 64))
    assert shapes["hidfd/ham10000"] == (7, (224, 224))
    assert shapes["hidfd/imagenet"] == shapes["muse-s/imagenet-deit"] == (1000, (224, 224))
    assert shapes["zskt/cifar10-original"] == (10, (32, 32))


@pytest.mark.parametrize("name", ["nayer", "muse-s"])
def test_a_record_has_ours_the_baseline_the_published_and_the_floor(name: str, runtime: Runtime, tmp_path) -> None:
    target = methods.read_target(f"{name}/digits")
    recipe = replace(target.config.method, synthesis_batch_size=16, batch_size=16)
    config = replace(target.config, method=recipe, teacher="cnn", student="cnn_s")
    target = replace(target, config=config, published_hours=1.0)
    row = methods.measure(
        target,
        runtime,
        TimingWindow(warmup=1, samples=1),
        share=0.5,
        matmul_rate=1e11,
        rival=time_baseline,
    )
    assert 0 < row["ours"]["floor_hours"] < row["ours"]["hours"]
    assert row["baseline_hours"] > row["ours"]["floor_hours"]
    header, line = methods.table([row])
    assert line.split()[0] == f"{name}/digits"
    assert line[header.index("published") :].split()[0] == "1"
    json.dumps(row)
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install dfkd-fast[bench])")
    plot([row | {"device": "CPU"}], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_time_is_scaled_up_with_the_batch(runtime: Runtime) -> None:
    """Half of each batch, timed by a clock that ticks once a look: twice the ticks."""
    target = methods.read_target("nayer/digits")
    recipe = replace(target.config.method, synthesis_batch_size=16, batch_size=16, generator_width=8)
    config = replace(target.config, method=recipe, teacher="cnn", student="cnn_s")
    ticks = iter(range(10**6))
    window = TimingWindow(warmup=0, samples=2, clock=lambda: float(next(ticks)))
    rows = [
        methods.measure(replace(target, config=config), runtime, window, share=share, matmul_rate=1e11)
        for share in (1.0, 0.5)
    ]
    whole, half = (row["ours"] for row in rows)
    assert half["distillation"]["seconds"] == pytest.approx(2 * whole["distillation"]["seconds"])
    assert half["synthesis"]["seconds"] == pytest.approx(2 * whole["synthesis"]["seconds"])
    assert half["synthesis"]["flops"] == whole["synthesis"]["flops"]


def test_mistakes_are_one_line(capsys) -> None:
    for arguments, text in (
        (["kernels"], "bench kernels: choose methods"),
        (["methods", "nayer/cifar1000"], "cifar100"),
        (["methods", "nayr/cifar10"], "nayer"),
        (["methods", "--batch-share", "2"], "--batch-share 2.0"),
    ):
        assert main(["bench", *arguments]) == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel name\t: AMD EPYC\nflags\t: avx2 avx512f avx512_bf16\n",
         "AMD EPYC (Zen 5, AVX512-BF16)"),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel name\t: A\nflags\t: avx512f amx_bf16\n\nmodel name\t: B",
         "A (AMX-BF16)"),
        ("model name\t: Neoverse\n", "Neoverse"),
        ("processor\t: 0\n", None),
    ],
)  # fmt: skip
def test_a_processor_is_told_with_its_family(cpuinfo: str, name: str | None) -> None:
    assert processor(cpuinfo) == name
