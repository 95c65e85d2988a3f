"""DFAD's values, its terms against plain torch, and what a switch changes; whole steps: whole_steps/test_dfad_steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from rounds import Rounds
from stepwise_release import SMALL, check_terms
from torch import Tensor, nn

from dfkd_fast.errors import UserError
from dfkd_fast.methods.dfad import Dfad, DfadConfig
from dfkd_fast.training.student import FreshTrainer
from dfkd_fast.training.student_recipe import student_lr

CONFIG = DfadConfig(**SMALL, student_lr_steps=())


@pytest.fixture
def method(make_method: Callable[..., Any]) -> Dfad:
    return make_method(Dfad, CONFIG)


def test_terms(make_method: Callable[..., Any], teacher: nn.Module, student: nn.Module) -> None:
    method = make_method(Dfad, replace(CONFIG, student_mode="eval"))

    def expected(logits: Tensor, _pooled: Tensor, _bn: Tensor) -> dict[str, Tensor]:
        return {"adv": -(student(method.generator.forward(logits)) - logits).abs().mean()}

    check_terms(method, teacher, expected)


def test_the_student_learns_the_mean_absolute_difference(method: Dfad, student: nn.Module, runtime: Any) -> None:
    trainer = FreshTrainer(student, method=method, teacher=method.teacher, runtime=runtime)
    trainer.begin_epoch(1)
    student.eval()
    torch.manual_seed(0)
    view = method.student_view(next(iter(trainer.batches().values())))
    expected = (student(view) - method.teacher(view, moments=False).logits).abs().mean()
    torch.manual_seed(0)
    torch.testing.assert_close(trainer.step()["kd"], expected.detach(), rtol=1e-9, atol=1e-12)


def test_generator_steps_move_the_students_statistics_as_released(
    make_method: Callable[..., Any], student: nn.Module, runtime: Any
) -> None:
    """The release leaves the student in train mode; `eval` leaves its running statistics alone."""
    for mode, moves in (("eval", False), ("released", True)):
        before = {name: value.clone() for name, value in student.named_buffers()}
        method = make_method(Dfad, replace(CONFIG, student_mode=mode))
        Rounds(method, runtime).round(1)
        assert any(not torch.equal(value, before[name]) for name, value in student.named_buffers()) == moves
        assert not student.training


def test_both_rates_fall_together(make_method: Callable[..., Any], runtime: Any) -> None:
    method = make_method(Dfad, replace(CONFIG, student_lr_steps=(1, 3)))
    rounds = Rounds(method, runtime)
    found = []
    for epoch in range(CONFIG.epochs):
        rounds.round(epoch)
        assert rounds.engine.lasting is not None
        found.append(rounds.engine.lasting.param_groups[0]["lr"])
    assert found == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])  # after the warm-up's epoch, as the student's


def test_both_rates_count_distilled_epochs(make_method: Callable[..., Any], runtime: Any) -> None:
    config = replace(CONFIG, student_lr_steps=(1,), warmup_epochs=2)
    method = make_method(Dfad, config)
    for epoch in range(2, config.epochs):
        assert student_lr(config, epoch) / config.student_lr == pytest.approx(method.lr_scale(epoch, 0))


def test_two_schedules_for_one_rate_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"^--method\.generator-lr-schedule cosine: .* --method\.student-lr-steps 100 200"
    ):
        DfadConfig(generator_lr_schedule="cosine").check()
    DfadConfig(generator_lr_schedule="cosine", student_lr_steps=()).check()


def test_default_recipe_is_the_releases() -> None:
    recipe = DfadConfig()
    assert (recipe.epochs, recipe.student_steps, recipe.student_steps_per_round) == (500, 250, 5)
    assert (recipe.student_lr, recipe.student_weight_decay, recipe.student_lr_steps) == (0.1, 5e-4, (100, 200))
    assert (recipe.latent_dim, recipe.generator_lr, recipe.batch_size) == (256, 1e-3, 256)


def test_golden(method: Dfad, runtime: Any) -> None:
    check_golden("dfad", trajectory(method, runtime, epochs=5, terms=["adv"]))
