"""NAYER against a version with hooks, written from the paper's equations; its schedule; its golden trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from released import HookedStatistics, masked_adversary
from rounds import Rounds, begin_round
from torch import nn
from torch.nn import functional as F

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.nayer import Nayer, NayerConfig
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.pool.pool import Pool
from dfkd_fast.training.student import StudentTrainer

CONFIG = NayerConfig(
    epochs=6,
    warmup_epochs=2,
    warmup_rounds=3,
    rounds=2,
    synthesis_batch_size=10,
    synthesis_steps=4,
    noise_features=12,
    crop_padding=2,
)
STILL = {"generator_lr": 0.0, "synthesis_steps": 1}
"""rounds that learn nothing: what they change, they have drawn anew"""


@pytest.fixture
def method(make_method: Callable[..., Any]) -> Nayer:
    return make_method(Nayer, CONFIG)


def test_losses_and_image_gradients_equal_the_hooked_version(
    method: Nayer, teacher: nn.Module, student: nn.Module
) -> None:
    """Three terms and d(term)/d(image) in float64 to 1e-9, before the first update of the EMA and after each of two."""
    hooks = HookedStatistics(teacher, CONFIG.bn_momentum)
    for round_index in range(3):
        torch.manual_seed(round_index)
        colour = 2 * torch.randn(10, 3, 1, 1, dtype=torch.float64)  # so that predictions differ, and some agree
        view = (torch.randn(10, 3, 16, 16, dtype=torch.float64) + colour).requires_grad_()
        method.augment = nn.Identity()
        method.generator.forward = lambda _embeddings, view=view: view  # the image itself is what is differentiated
        _, ours = method.step(adversarial=True)
        hooks.inputs.clear()
        logits = teacher(view)
        theirs = {
            "ce": F.cross_entropy(logits, method.labels),
            "bn": hooks.loss(),
            "adv": masked_adversary(student(view), logits),
        }
        assert ours.keys() == theirs.keys()
        for name in theirs:
            (found,) = torch.autograd.grad(ours[name], view, retain_graph=True)
            (expected,) = torch.autograd.grad(theirs[name], view, retain_graph=True)
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
            assert found.abs().max() > 0
        method.statistics.update()
        hooks.update()


def test_frozen_networks_get_no_weight_gradients(method: Nayer, setup: Setup, runtime: Any) -> None:
    Rounds(method, runtime).engine.step({"adversarial": True})
    frozen = [*setup.teacher.net.parameters(), *setup.student.parameters()]
    assert frozen
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert all(p.grad is not None for p in method.generator.parameters())


def test_method_state_is_its_own(method: Nayer) -> None:
    """Neither teacher nor student is saved with the method, moved with it or trained by it."""
    assert {name.split(".")[0] for name in method.state_dict()} == {"generator", "statistics"}
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"generator"}


def test_rounds_and_pool_capacity(method: Nayer) -> None:
    assert [method.rounds(epoch) for epoch in range(6)] == [3, 3, 2, 2, 2, 2]
    (plan,) = method.pools()
    assert plan.capacity == (2 * 3 + 4 * 2) * 10


@pytest.mark.parametrize(("epochs", "images"), [(120, 160_000), (220, 240_000), (320, 320_000)])
def test_published_image_budget(setup: Setup, epochs: int, images: int) -> None:
    """20 x 10 x 400 + E x 2 x 400 images for E = 100, 200, 300."""
    (plan,) = Nayer(NayerConfig(epochs=epochs), setup).pools()
    assert plan.capacity == images


def test_generator_life(make_method: Callable[..., Any], runtime: Any) -> None:
    """Re-initialised where epoch or epoch - warm-up is a multiple of its life, in the first round only, in place."""
    method = make_method(Nayer, replace(CONFIG, generator_life=5, **STILL))
    rounds, stem = Rounds(method, runtime), method.generator.decoder.stem.weight
    address = stem.data_ptr()
    reset = []
    for epoch in range(12):
        for index in range(2):
            before = stem.detach().clone()
            rounds.round(epoch, index)
            if not torch.equal(before, stem):
                reset.append((epoch, index))
    assert reset == [(epoch, 0) for epoch in range(12) if epoch % 5 == 0 or (epoch - 2) % 5 == 0]
    assert stem.data_ptr() == address


def test_noise_is_drawn_each_round_and_only_the_noise(make_method: Callable[..., Any], runtime: Any) -> None:
    method = make_method(Nayer, replace(CONFIG, **STILL))
    rounds = Rounds(method, runtime)
    rounds.round(0, 0)
    before = {name: value.detach().clone() for name, value in method.generator.named_parameters()}
    rounds.round(0, 1)
    changed = {name for name, value in method.generator.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"noise.weight"}


def test_without_re_initialisation_the_noise_is_learned_on(make_method: Callable[..., Any], runtime: Any) -> None:
    """The paper's ablation: the noisy layers keep what they have learned, as the rest of the generator does."""
    method = make_method(Nayer, replace(CONFIG, reset_noise=False, generator_life=0))
    rounds = Rounds(method, runtime)
    rounds.round(0, 0)
    before = {name: value.detach().clone() for name, value in method.generator.named_parameters()}
    begin_round(method, 0, 1)
    variant = begin_round(method, 1, 0)
    assert all(torch.equal(value, before[name]) for name, value in method.generator.named_parameters())
    rounds.engine.step(variant)
    assert not torch.equal(method.generator.noise.weight, before["noise.weight"])


def test_adversarial_term_starts_with_distillation(method: Nayer) -> None:
    active = []
    for epoch in range(5):
        active.append("adv" in method.step(**begin_round(method, epoch))[1])
    assert active == [False, False, True, True, True]


def test_the_student_is_in_train_mode_from_the_second_round_on(
    make_method: Callable[..., Any], student: nn.Module
) -> None:
    """Its running statistics move in these rounds only, in place; `eval` leaves them alone."""
    for mode, expected in (("released", [False, True, False, True]), ("eval", [False] * 4)):
        method = make_method(Nayer, replace(CONFIG, student_mode=mode))
        moved, variants = [], []
        for epoch, index in ((2, 0), (2, 1), (3, 0), (3, 1)):
            variant = begin_round(method, epoch, index)
            before = student.bn1.running_mean.clone()
            method.step(**variant)
            moved.append(not torch.equal(before, student.bn1.running_mean))
            variants.append(tuple(variant.items()))
        assert moved == expected
        assert len(set(variants)) == len(set(expected))


def test_labels_cover_the_classes(method: Nayer) -> None:
    begin_round(method, 0)
    assert method.labels[:8].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_batches_smaller_than_the_classes_cover_them_in_turn(make_method: Callable[..., Any], runtime: Any) -> None:
    """ImageNet: one permutation an epoch, round i takes its i-th slice."""
    method = make_method(Nayer, NayerConfig(synthesis_batch_size=2, noise_features=12, **STILL))
    rounds = Rounds(method, runtime)
    for _ in range(2):
        seen = []
        for index in range(2):
            rounds.round(0, index)
            seen += method.labels.tolist()
        assert sorted(seen) == [0, 1, 2, 3]


def test_jitter_is_part_of_what_is_kept(make_method: Callable[..., Any]) -> None:
    method = make_method(Nayer, NayerConfig(synthesis_batch_size=10, noise_features=12, jitter=True))
    variant = begin_round(method, 0)
    torch.manual_seed(0)
    plain = method.generator(method.label_embeddings[method.labels])
    images, _ = method.step(**variant)
    assert images.shape == plain.shape
    assert not torch.equal(images, plain)
    torch.testing.assert_close(images.sum((1, 2, 3)), plain.sum((1, 2, 3)))  # the same pixels elsewhere


def test_the_students_view_may_differ(
    make_method: Callable[..., Any], setup: Setup, student: nn.Module, runtime: Any
) -> None:
    """ImageNet: synthesis crops with padding and never flips; the student has a random resized crop and flips."""

    def trainer(**changes: Any) -> StudentTrainer:
        method = make_method(Nayer, replace(CONFIG, **changes))
        pools = MultiPool({ImageSize.of(16): Pool(8, (3, 16, 16), runtime=runtime, num_classes=4)})
        return StudentTrainer(student, method=method, teacher=setup.teacher, pool=pools, runtime=runtime)

    large = {"flip": False, "student_flip": "on", "student_crop_scale": 0.08}
    for changes, synthesis, expected in (
        ({}, (1.0, 2, True), (1.0, 2, True)),
        (large, (1.0, 2, False), (0.08, 0, True)),
        ({"crop_scale": 0.5, "student_flip": "off"}, (0.5, 0, True), (0.5, 0, False)),
    ):
        made = trainer(**changes)
        augment, view = made.method.augment, made.views[ImageSize.of(16)]
        assert (augment.crop_scale, augment.pad, augment.flip) == synthesis
        assert (made.crop_scale, view.pad, view.flip) == expected
    with pytest.raises(UserError, match=r"^--method\.student-crop-scale 1\.5: choose a share above 0 and up to 1$"):
        trainer(student_crop_scale=1.5)


def test_golden_trajectory(method: Nayer, runtime: Any) -> None:
    """20 steps: 5 rounds of 4, one of them in each of epochs 0 to 4, so that every switch of the method is passed."""
    found = trajectory(method, runtime, epochs=5, terms=("ce", "bn", "adv"))
    assert found["losses"].shape == (20, 3)
    check_golden("nayer", found | {"pool": method.statistics.pool.clone()})
