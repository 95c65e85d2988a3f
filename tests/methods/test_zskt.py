"""ZSKT against the released code's steps in plain torch; attention transfer, its values, and the released slip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from rounds import Rounds, begin_round
from stepwise_release import SMALL, check_rounds, check_terms, divergence, mistaken
from torch import Tensor, nn
from toy_networks import INFO

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.zskt import Zskt, ZsktConfig
from dfkd_fast.models.teacher import FrozenNet, frozen_alias
from dfkd_fast.training.student import FreshTrainer

CONFIG = ZsktConfig(**SMALL)
ATTENTIVE = replace(CONFIG, attention_weight=250.0)
ORIGINAL = replace(CONFIG, generator_output="batchnorm", generator_lr_schedule="cosine", sampling="train")


@pytest.fixture
def method(make_method: Callable[..., Any]) -> Zskt:
    return make_method(Zskt, CONFIG)


def test_rounds_equal_the_release(method: Zskt, teacher: nn.Module, student: nn.Module, runtime: Any) -> None:
    def loss(logits: Tensor, _pooled: Tensor, _bn: Tensor, answer: Tensor) -> Tensor:
        return -divergence(answer, logits)

    check_rounds(method, teacher, student, loss, runtime)


def test_originals_generator(
    make_method: Callable[..., Any], teacher: nn.Module, student: nn.Module, runtime: Any
) -> None:
    """The same game with images that end in a BatchNorm; the grids show what of them lies within pixels."""
    method = make_method(Zskt, replace(ORIGINAL, generator_lr_schedule="constant"))

    def loss(logits: Tensor, _pooled: Tensor, _bn: Tensor, answer: Tensor) -> Tensor:
        return -divergence(answer, logits)

    check_rounds(method, teacher, student, loss, runtime)
    images = method.generate(64)
    assert images.min() < 0
    assert Rounds(method, runtime).round(1).images.min() == 0


def test_generators_rate_follows_torchs_cosine(make_method: Callable[..., Any], runtime: Any) -> None:
    method = make_method(Zskt, replace(CONFIG, generator_lr_schedule="cosine", student_steps=12))
    plain = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=CONFIG.generator_lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(plain, CONFIG.epochs * 4)
    rounds = Rounds(method, runtime)
    for epoch in range(CONFIG.epochs):
        assert method.rounds(epoch) == 4
        for index in range(4):
            rounds.round(epoch, index)
            assert rounds.engine.lasting is not None
            found = rounds.engine.lasting.param_groups[0]["lr"]
            assert found == pytest.approx(plain.param_groups[0]["lr"], rel=1e-9)
            plain.step()
            schedule.step()


def test_terms(method: Zskt, teacher: nn.Module, student: nn.Module) -> None:
    def expected(logits: Tensor, _pooled: Tensor, _bn: Tensor) -> dict[str, Tensor]:
        answer = student(method.generator.forward(logits))
        p, log_q = logits.softmax(1), answer.log_softmax(1)
        return {"adv": -(p * (p.log() - log_q)).sum(1).mean()}

    check_terms(method, teacher, expected)


def test_the_student_is_the_student(method: Zskt) -> None:
    """Two released codes pass the teacher in its place: then the generator learns nothing at all. Ours does."""
    variant = begin_round(method, 3)
    images, terms = method.step(**variant)
    (gradient,) = torch.autograd.grad(terms["adv"], images)
    assert terms["adv"] < -1e-3
    assert gradient.abs().max() > 1e-6
    with mistaken(method, method.teacher).context():
        assert method.step(**variant)[1]["adv"].abs() < 1e-12


def test_attention_transfer_in_the_students_loss(
    make_method: Callable[..., Any], teacher: nn.Module, student: nn.Module, runtime: Any
) -> None:
    """Its value, from hooked networks; the student learns from it, and the teacher's maps cost no second forward."""
    method = make_method(Zskt, ATTENTIVE)
    trainer = FreshTrainer(student, method=method, teacher=method.teacher, runtime=runtime)
    maps: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    for name, network in (("teacher", teacher), ("student", student)):
        for layer in ("conv2", "conv3"):  # what they read is where a stage ends
            network.get_submodule(layer).register_forward_hook(
                lambda _module, inputs, _output, name=name: maps[name].append(inputs[0])
            )
    trainer.begin_epoch(1)
    torch.manual_seed(0)
    method.eval()
    (batch,) = trainer.batches().values()
    view = method.student_view(batch)
    teacher(view)
    student(view)
    expected = 0.0
    for one, other in zip(maps["teacher"], maps["student"], strict=True):
        rows = [[(map_**2).mean(0).flatten() for map_ in batch] for batch in (one, other)]
        difference = [a / a.norm() - b / b.norm() for a, b in zip(*rows, strict=True)]
        expected = expected + torch.stack(difference).square().mean()
    student.zero_grad()
    torch.manual_seed(0)
    terms = trainer.step()
    assert terms.keys() == {"kd", "attention"}
    torch.testing.assert_close(terms["attention"], expected.detach(), rtol=1e-9, atol=1e-12)
    assert terms["attention"] > 0


def test_stages_of_other_sizes(teacher: nn.Module, runtime: Any) -> None:
    """A student that halves its maps at once: said before anything is made."""
    halving = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU())
    student = nn.Sequential(*halving, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)).double()
    setup = Setup(FrozenNet(teacher, INFO, runtime), frozen_alias(student), INFO, torch.empty(4, 0))
    with pytest.raises(
        UserError, match=r"^--method\.attention-weight 250\.0: maps of stage 1 are \(16, 16\) in the teac"
    ):
        Zskt(ATTENTIVE, setup)


def test_nothing_to_compare(make_method: Callable[..., Any], teacher: nn.Module, runtime: Any) -> None:
    """No stages asked for, or a student of one convolution."""
    with pytest.raises(UserError, match=r"^--method\.attention-weight 250: no stages to compare, 0 asked for, 2 found"):
        make_method(Zskt, replace(ATTENTIVE, attention_stages=0))
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    setup = Setup(FrozenNet(teacher, INFO, runtime), frozen_alias(student.double()), INFO, torch.empty(4, 0))
    with pytest.raises(UserError, match=r"^--method\.attention-weight 250: no stages to compare, 3 asked for, 0 found"):
        Zskt(ATTENTIVE, setup)


def test_default_recipe_is_the_benchmarks() -> None:
    recipe = ZsktConfig()
    assert (recipe.epochs, recipe.student_steps, recipe.student_steps_per_round) == (200, 400, 5)
    assert (recipe.latent_dim, recipe.generator_lr, recipe.adv_weight, recipe.attention_weight) == (256, 1e-3, 1, 0)
    assert (recipe.student_lr, recipe.student_lr_min, recipe.kd_temperature) == (0.1, 0, 1)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_presets_are_the_benchmark(name: str) -> None:
    assert load_config(default_config("zskt"), preset=name).method == ZsktConfig()


def test_originals_values() -> None:
    recipe = load_config(default_config("zskt"), preset="cifar10-original").method
    assert (recipe.attention_weight, recipe.student_steps_per_round, recipe.latent_dim) == (250, 10, 100)
    assert recipe.epochs * recipe.student_steps / recipe.student_steps_per_round == 80_000
    assert recipe.kd_weight == recipe.adv_weight == 1 / 10  # a mean over ten classes there
    assert (recipe.generator_output, recipe.generator_lr_schedule) == ("batchnorm", "cosine")
    assert (recipe.student_optimizer, recipe.student_lr, recipe.student_weight_decay) == ("adamw", 2e-3, 0)


def test_golden_trajectory(method: Zskt, make_method: Callable[..., Any], runtime: Any) -> None:
    """The benchmark's, and the original's generator and its rate, which the digits preset has."""
    found = trajectory(method, runtime, epochs=5, terms=("adv",))
    assert found["losses"].shape == (20, 1)
    original = trajectory(make_method(Zskt, ORIGINAL), runtime, epochs=5, terms=("adv",))
    check_golden("zskt", found | {f"original/{name}": value for name, value in original.items()})
