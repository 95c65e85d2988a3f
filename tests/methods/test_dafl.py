"""DAFL against the released code's steps in plain torch; its values, its presets, teachers that it cannot read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from rounds import begin_round
from stepwise_release import SMALL, balance, check_rounds, check_terms
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.dafl import Dafl, DaflConfig
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.models.teacher import FrozenNet, frozen_alias

CONFIG = DaflConfig(**SMALL)


@pytest.fixture
def method(make_method: Callable[..., Any]) -> Dafl:
    return make_method(Dafl, replace(CONFIG, act_weight=0.1))


ORIGINAL = replace(CONFIG, act_weight=0.1, generator_output="tanh-batchnorm", sampling="train")


@pytest.mark.parametrize(
    "config", [replace(CONFIG, act_weight=0.1), replace(CONFIG, act_weight=0.1, sampling="train"), ORIGINAL]
)
def test_rounds_equal_the_release(
    make_method: Callable[..., Any], teacher: nn.Module, student: nn.Module, runtime: Any, config: DaflConfig
) -> None:
    method = make_method(Dafl, config)

    def loss(logits: Tensor, pooled: Tensor, _bn: Tensor, _student: Tensor) -> Tensor:
        return F.cross_entropy(logits, logits.max(1)[1]) - 0.1 * pooled.abs().mean() + 20 * balance(logits)

    check_rounds(method, teacher, student, loss, runtime)


def test_terms(method: Dafl, teacher: nn.Module) -> None:
    def expected(logits: Tensor, pooled: Tensor, _bn: Tensor) -> dict[str, Tensor]:
        ce = -torch.stack([row.log_softmax(0)[row.argmax()] for row in logits]).mean()
        return {"ce": ce, "balance": balance(logits), "act": -pooled.abs().mean()}

    check_terms(method, teacher, expected)


def test_no_statistics_and_no_student_in_the_generators_step(method: Dafl) -> None:
    """It reads neither: BN moments are not computed, and the student is not run."""
    method._student = (None,)  # type: ignore[assignment]
    variant = begin_round(method, 3)
    method.teacher.net.forward, real = None, method.teacher.net.forward  # type: ignore[method-assign,assignment]
    seen: list[bool] = []

    def watched(view: Tensor, *, moments: bool) -> Any:
        seen.append(moments)
        return real(view, moments=moments)

    method.teacher.net.forward = watched  # type: ignore[method-assign]
    assert set(method.step(**variant)[1]) == {"ce", "balance", "act"}
    assert seen == [False]


class Flat(nn.Module):
    """A network that pools no feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 16)

    def forward(self, view: Tensor) -> Tensor:
        return self.conv(view)[:, :, 0, 0]


def test_a_teacher_without_pooled_features(student: nn.Module, runtime: Any) -> None:
    info = ModelInfo(name="flat", num_classes=4, image_size=16, mean=(0.5,) * 3, std=(0.2,) * 3)
    setup = Setup(FrozenNet(Flat().double(), info, runtime), frozen_alias(student), info, torch.empty(4, 0))
    with pytest.raises(UserError, match=r"^--teacher flat: .*choose another network, or --method\.act-weight 0$"):
        Dafl(CONFIG, setup)
    method = runtime.place(Dafl(replace(CONFIG, act_weight=0.0), setup)).train()
    assert set(method.step(adversarial=False)[1]) == {"ce", "balance"}


def test_default_recipe_is_the_benchmarks() -> None:
    recipe = DaflConfig()
    assert (recipe.epochs, recipe.warmup_epochs, recipe.student_steps, recipe.student_steps_per_round) == (
        200,
        0,
        400,
        5,
    )
    assert (recipe.synthesis_steps, recipe.synthesis_batch_size, recipe.batch_size) == (1, 256, 256)
    assert (recipe.latent_dim, recipe.generator_width, recipe.generator_lr) == (512, 256, 1e-3)
    assert (recipe.ce_weight, recipe.act_weight, recipe.balance_weight) == (1, 0.001, 20)
    assert (recipe.student_lr, recipe.student_lr_min, recipe.student_weight_decay, recipe.kd_temperature) == (
        0.1,
        0,
        1e-4,
        1,
    )
    assert (recipe.crop_padding, recipe.flip, recipe.sampling) == (0, False, "eval")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_presets_are_the_benchmark(name: str) -> None:
    assert load_config(default_config("dafl"), preset=name).method == DaflConfig()


def test_originals_values() -> None:
    recipe = load_config(default_config("dafl"), preset="cifar10-original").method
    assert (recipe.latent_dim, recipe.ce_weight, recipe.act_weight) == (1000, 1, 0.1)
    assert recipe.balance_weight == pytest.approx(5 / math.log(10), rel=1e-4)  # logarithms to base 10 there
    assert (recipe.synthesis_batch_size, recipe.batch_size, recipe.student_steps_per_round) == (1024, 1024, 1)
    assert (recipe.epochs, recipe.student_steps, recipe.student_lr_steps) == (2000, 120, (800, 1600))
    assert recipe.generator_output == "tanh-batchnorm"
    assert (recipe.generator_lr, recipe.student_lr, recipe.student_weight_decay) == (0.02, 0.1, 5e-4)


def test_golden_trajectory(method: Dafl, make_method: Callable[..., Any], runtime: Any) -> None:
    """The benchmark's, and the original's generator, which the digits preset has."""
    found = trajectory(method, runtime, epochs=5, terms=("ce", "balance", "act"))
    assert found["losses"].shape == (20, 3)
    original = trajectory(make_method(Dafl, ORIGINAL), runtime, epochs=5, terms=("ce", "balance", "act"))
    check_golden("dafl", found | {f"original/{name}": value for name, value in original.items()})
