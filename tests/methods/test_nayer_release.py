"""NAYER's rounds against an independent version of the release's `synthesize()`: schedule, best iterate, Adam, EMA."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from nayer_release import Draws, ReleasedNayer, State
from rounds import Rounds
from torch import Tensor, nn
from toy_networks import INFO

from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.nayer import Nayer, NayerConfig
from dfkd_fast.models.teacher import frozen_alias
from dfkd_fast.rng import seed_phase

CONFIG = NayerConfig(
    epochs=6,
    warmup_epochs=1,
    warmup_rounds=4,
    rounds=2,
    generator_life=2,
    synthesis_batch_size=10,
    synthesis_steps=4,
    noise_features=12,
    generator_width=8,
    crop_padding=0,
    flip=False,
)


def recorded(method: Nayer) -> Draws:
    """Keep what the method draws from now on."""
    draws = Draws()

    def watch(module: nn.Module, into: Any) -> None:
        original = module.reset_parameters

        def reset() -> None:
            original()
            into.append(state_of(module))

        module.reset_parameters = reset

    def state_of(module: nn.Module) -> State:
        return {name: value.detach().clone() for name, value in module.state_dict().items()}

    inside = method.generator.noise.reset_parameters  # the whole generator's reset draws these too
    watch(method.generator, draws.generators)
    reset_all = method.generator.reset_parameters

    def reset_generator() -> None:
        outer, method.generator.noise.reset_parameters = method.generator.noise.reset_parameters, inside
        reset_all()
        method.generator.noise.reset_parameters = outer

    method.generator.reset_parameters = reset_generator
    watch(method.generator.noise, draws.noises)
    copy = method.labels.copy_

    def copied(labels: Tensor) -> Tensor:
        draws.labels.append(labels.clone())
        return copy(labels)

    method.labels.copy_ = copied
    return draws


@torch.no_grad()
def learn(student: nn.Module, epoch: int) -> None:
    """Stand for an epoch of distillation: other weights, other running statistics."""
    torch.manual_seed(epoch)
    for value in student.state_dict().values():
        if value.is_floating_point():
            value.mul_(1 + 0.02 * torch.rand_like(value))


def rounds_of_both(
    setup: Setup, teacher: nn.Module, student: nn.Module, runtime: Any, config: NayerConfig
) -> tuple[list[Tensor], list[Tensor], nn.Module, Draws]:
    """Images of every round, ours and the release's, the release's student and the draws it left."""
    theirs = copy.deepcopy(student)
    torch.manual_seed(3)
    method = runtime.place(Nayer(config, setup._replace(student=frozen_alias(student)))).train()
    draws, rounds = recorded(method), Rounds(method, runtime)
    # the constants of normalisation are stored in float32
    mean, std = (torch.tensor(values).double().view(1, 3, 1, 1) for values in (INFO.mean, INFO.std))
    release = ReleasedNayer(
        teacher=copy.deepcopy(teacher),
        student=theirs,
        embeddings=setup.label_embeddings.double(),
        draws=draws,
        normalize=lambda images: (images - mean) / std,
        warmup=config.warmup_epochs,
        warmup_rounds=config.warmup_rounds,
        rounds=config.rounds,
        steps=config.synthesis_steps,
        life=config.generator_life,
        lr=config.generator_lr,
        momentum=config.bn_momentum,
    )
    ours, expected = [], []
    for epoch in range(config.epochs):
        seed_phase(0, 0, epoch, "synthesis")
        ours += [rounds.round(epoch, i).images.clone() for i in range(method.rounds(epoch))]
        expected += release.synthesize()
        for network in (student, theirs):
            learn(network, epoch)
    return ours, expected, theirs, draws


def test_fourteen_rounds_equal_the_release(setup: Setup, teacher: nn.Module, student: nn.Module, runtime: Any) -> None:
    """Images to 1e-9 in float64, and the student's running statistics, which rounds in train mode move."""
    ours, expected, theirs, draws = rounds_of_both(setup, teacher, student, runtime, CONFIG)
    assert len(ours) == len(expected) == 14
    for index, (found, wanted) in enumerate(zip(ours, expected, strict=True)):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9, msg=lambda text, i=index: f"round {i}: {text}")
    assert draws.used
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("change", [{"student_mode": "eval"}, {"adv_masked": False}])
def test_the_comparison_sees_what_differs(
    setup: Setup, teacher: nn.Module, student: nn.Module, runtime: Any, change: dict[str, Any]
) -> None:
    ours, expected, _, _ = rounds_of_both(setup, teacher, student, runtime, replace(CONFIG, epochs=3, **change))
    assert not torch.allclose(torch.stack(ours), torch.stack(expected), rtol=1e-9, atol=1e-9)
