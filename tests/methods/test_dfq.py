"""DFQ against the released code's steps in plain torch; its values, its presets, and the slip of two released codes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from rounds import begin_round
from stepwise_release import SMALL, balance, check_rounds, check_terms, divergence, mistaken
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.cli.ls import published
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.methods.dfq import Dfq, DfqConfig

CONFIG = DfqConfig(**SMALL)


@pytest.fixture
def method(make_method: Callable[..., Any]) -> Dfq:
    return make_method(Dfq, CONFIG)


def test_rounds_equal_the_release(method: Dfq, teacher: nn.Module, student: nn.Module, runtime: Any) -> None:
    def loss(logits: Tensor, _pooled: Tensor, bn: Tensor, answer: Tensor) -> Tensor:
        return F.cross_entropy(logits, logits.max(1)[1]) + bn + 20 * balance(logits) - divergence(answer, logits)

    check_rounds(method, teacher, student, loss, runtime)


def test_terms(method: Dfq, teacher: nn.Module, student: nn.Module) -> None:
    view: list[Tensor] = []
    student.register_forward_pre_hook(lambda _module, inputs: view.append(inputs[0]))

    def expected(logits: Tensor, _pooled: Tensor, bn: Tensor) -> dict[str, Tensor]:
        answer = student(method.generator.forward(logits))
        p, log_q = logits.softmax(1), answer.log_softmax(1)
        return {
            "ce": F.cross_entropy(logits, logits.argmax(1)),
            "balance": balance(logits),
            "bn": bn,
            "adv": -(p * (p.log() - log_q)).sum(1).mean(),
        }

    method.augment = nn.Identity()
    check_terms(method, teacher, expected)


def test_the_student_is_the_student(method: Dfq) -> None:
    """Two released codes pass the teacher in its place: then the term, and its gradient, is zero. Ours is not."""
    variant = begin_round(method, 3)
    images, terms = method.step(**variant)
    (gradient,) = torch.autograd.grad(terms["adv"], images)
    assert terms["adv"] < -1e-3
    assert gradient.abs().max() > 1e-6
    with mistaken(method, method.teacher).context():
        images, terms = method.step(**variant)
    (gradient,) = torch.autograd.grad(terms["adv"], images)
    assert terms["adv"].abs() < 1e-12
    assert gradient.abs().max() < 1e-12


def test_without_statistics(make_method: Callable[..., Any]) -> None:
    method = make_method(Dfq, replace(CONFIG, bn_weight=0.0))
    variant = begin_round(method, 3)
    assert set(method.step(**variant)[1]) == {"ce", "balance", "adv"}


def test_warm_up_is_the_generators_alone(method: Dfq) -> None:
    for epoch, expected in ((0, False), (1, True)):
        variant = begin_round(method, epoch)
        assert ("adv" in method.step(**variant)[1]) == expected


def test_default_recipe_is_the_benchmarks() -> None:
    recipe = DfqConfig()
    assert (recipe.epochs, recipe.student_steps, recipe.student_steps_per_round) == (200, 400, 10)
    assert (recipe.latent_dim, recipe.generator_width, recipe.generator_lr) == (256, 256, 1e-3)
    assert (recipe.ce_weight, recipe.bn_weight, recipe.balance_weight, recipe.adv_weight) == (1, 1, 20, 1)
    assert (recipe.student_lr, recipe.student_lr_min, recipe.kd_temperature) == (0.1, 0, 1)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_presets_are_the_benchmark(name: str) -> None:
    """With half the learning rate for the student of ResNet-34."""
    for entry in published("dfq", name):
        recipe = load_config(default_config("dfq"), preset=name, flags=shlex.split(entry.get("flags", ""))).method
        assert recipe == DfqConfig(student_lr=0.05 if entry["teacher"] == "resnet34" else 0.1)


def test_golden_trajectory(method: Dfq, make_method: Callable[..., Any], runtime: Any) -> None:
    """Five epochs of four generator steps: the first a warm-up, without the adversarial term. The benchmark's, and with
    the generator of the digits preset.
    """
    found = trajectory(method, runtime, epochs=5, terms=("ce", "balance", "bn", "adv"))
    assert found["losses"].shape == (20, 4)
    standardized = replace(CONFIG, generator_output="batchnorm", generator_lr_schedule="cosine", sampling="train")
    other = trajectory(make_method(Dfq, standardized), runtime, epochs=5, terms=("ce", "balance", "bn", "adv"))
    check_golden("dfq", found | {f"standardized/{name}": value for name, value in other.items()})
