"""SpaceshipNet: its terms, its student views out of the pool, its values; formulas have tests of their own."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from released import HookedStatistics
from rounds import Rounds, begin_round
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.config.train import PoolConfig
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.inner import Variant
from dfkd_fast.methods.spaceshipnet import SpaceshipNet, SpaceshipNetConfig
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.pool import build
from dfkd_fast.pool.pool import PoolBatch
from dfkd_fast.pool.storage import Room
from dfkd_fast.rng import SHARED

CONFIG = SpaceshipNetConfig(
    epochs=4, synthesis_batch_size=10, synthesis_steps=4, latent_dim=8, generator_width=8, crop_padding=0, flip=False
)


@pytest.fixture
def method(make_method: Callable[..., Any]) -> SpaceshipNet:
    return make_method(SpaceshipNet, CONFIG)


def made(method: SpaceshipNet, runtime: Any) -> PoolBatch:
    """What a round leaves, as a batch of the pool."""
    batch = Rounds(method, runtime).round(0)
    return PoolBatch(batch.images, batch.labels, torch.arange(10), batch.extras)


def test_synthesis_terms_equal_the_hooked_version(method: SpaceshipNet, teacher: nn.Module) -> None:
    """Two terms and d(term)/d(image) in float64 to 1e-9; no adversary in any epoch."""
    hooks = HookedStatistics(teacher, 0.0)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(10, 3, 16, 16, dtype=torch.float64, generator=generator).requires_grad_()
    method.augment = nn.Identity()
    method.generator.forward = lambda _: (images, ())  # the image itself is what is differentiated
    _, ours = method.step()
    logits = teacher(images)
    theirs = {"ce": F.cross_entropy(logits, torch.arange(10) % 4), "bn": hooks.loss()}
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-9)
        gradients = [torch.autograd.grad(term, images, retain_graph=True)[0] for term in (ours[name], expected)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_every_class_has_its_turn(make_method: Callable[..., Any]) -> None:
    """As released where there is room; a process that makes three images for four classes goes on in the next round."""
    whole, part = (make_method(SpaceshipNet, replace(CONFIG, synthesis_batch_size=size)) for size in (10, 3))
    seen = []
    for epoch in range(4):
        for method in (whole, part):
            begin_round(method, epoch)
        assert whole.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
        seen += part.labels.tolist()
    assert seen == 3 * [0, 1, 2, 3]


def test_student_terms(method: SpaceshipNet, setup: Setup, student: nn.Module, runtime: Any) -> None:
    """KL with a mean over all its numbers, T = 30, times 900; mSARC in two terms."""
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    reads = method.student_reads()
    teacher = setup.teacher.answer(images, maps=reads.teacher, gradients=reads.teacher_gradients)
    out = FeatureExtractor(student, maps=reads.student or ())(images)
    batch = PoolBatch(images, torch.zeros(6).long(), torch.arange(6), {})
    terms = method.student_loss(batch, teacher, out)
    p, log_q = torch.softmax(teacher.logits.detach() / 30, 1), torch.log_softmax(out.logits / 30, 1)
    expected = (p * (p.log() - log_q)).mean() * 900  # over batch and classes
    torch.testing.assert_close(terms["kd"], expected, rtol=1e-9, atol=1e-12)
    assert method.cams is not None
    deep, shallow = method.cams(teacher, out)
    assert (terms["cam"], terms["grad_cam"]) == (deep, shallow)
    sum(terms.values()).backward()
    assert all(weight.grad is None for weight in setup.teacher.net.parameters())
    bare = SpaceshipNet(replace(CONFIG, cam_weight=0.0, grad_cam_weight=0.0), setup)
    reads = bare.student_reads()
    assert (reads.student, reads.teacher, reads.teacher_gradients) == (None, (), False)
    assert bare.student_loss(batch, NetOutput(teacher.logits), NetOutput(out.logits)).keys() == {"kd"}


def test_a_round_keeps_images_and_their_maps(method: SpaceshipNet, runtime: Any) -> None:
    """Of the same step: the maps, decoded as that step did, are the images."""
    rounds = Rounds(method, runtime)
    engine = rounds.engine
    weights: list[dict[str, Tensor]] = []
    losses: list[float] = []

    def remember(terms: dict[str, Tensor], _images: int) -> None:
        losses.append(0.5 * terms["ce"].item() + terms["bn"].item())

    def watched_step(_key: Hashable, variant: Variant) -> dict[str, Tensor]:
        weights.append({name: value.clone() for name, value in method.state_dict().items()})
        return engine.step(variant)

    engine.run_step = watched_step
    batch = rounds.round(0, 0, remember)
    best = losses.index(min(losses))
    method.load_state_dict(weights[best])
    method.generator.train()
    for cut in (0, 1, 2):
        assert batch.extras[f"maps{cut}"].dtype == torch.float16
        images = method.generator.decode(batch.extras[f"maps{cut}"], cut)
        torch.testing.assert_close(images, batch.images, rtol=0, atol=2e-2)


def test_student_views_are_decoded_at_rest(make_method: Callable[..., Any], runtime: Any) -> None:
    """By the present generator, from the maps that the step's variant names; without exchange it is what they show."""
    method = make_method(SpaceshipNet, replace(CONFIG, exchange_probability=0.0, stored_precision="fp32"))
    batch = made(method, runtime)
    seen = set()
    SHARED.seed(0)
    for _ in range(12):
        cut = method.student_variant()
        seen.add(cut)
        assert not method.generator.training
        before = {name: value.clone() for name, value in method.state_dict().items()}
        with torch.no_grad():
            view = method.student_view(batch)
            expected = method.augment.normalize(method.generator.decode(batch.extras[f"maps{cut}"], cut))
        torch.testing.assert_close(view, expected)
        assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert seen == {0, 1, 2}
    begin_round(method, 1)
    assert method.generator.training
    exchanging = make_method(SpaceshipNet, replace(CONFIG, exchange_probability=1.0))
    exchanging.student_variant()
    with torch.no_grad():
        other = exchanging.student_view(batch)
        plain = exchanging.augment.normalize(
            exchanging.generator.decode(batch.extras[f"maps{exchanging.cut}"], exchanging.cut)
        )
    assert not torch.allclose(other, plain)


def test_which_maps_a_step_takes_depends_on_the_seed(method: SpaceshipNet) -> None:
    SHARED.seed(7)
    first = [method.student_variant() for _ in range(20)]
    SHARED.seed(7)
    assert first == [method.student_variant() for _ in range(20)]


@pytest.mark.parametrize(("size", "megabytes"), [(32, 0.21), (64, 0.85)])
def test_the_pool_counts_the_maps(setup: Setup, size: int, megabytes: float) -> None:
    info = replace(setup.info, image_size=size)
    method = SpaceshipNet(SpaceshipNetConfig(synthesis_batch_size=2), setup._replace(info=info))
    (plan,) = method.pools()
    assert round(plan.extra_bytes / 1e6, 2) == megabytes


def test_large_extras_go_to_the_disk(tmp_path: Path, runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit on a GPU is not put into page-locked memory, which holds images only."""
    cuda = replace(runtime, device=torch.device("cuda", 0))
    monkeypatch.setattr(build, "free_memory", lambda _: Room(device=10**6, host=10**9))
    assert build._room(cuda, 0) == Room(10**6, 10**9)
    assert build._room(cuda, 1) == Room(10**6, 0)
    monkeypatch.undo()
    monkeypatch.setattr(build, "free_memory", lambda _: Room(device=10**6, host=10**6))
    shape = {"capacity": 10, "image_shape": (3, 16, 16), "num_classes": 4, "runtime": runtime}
    for extra_bytes, storage in ((0, "device"), (100_000, "mmap")):
        pool, line = build.make_pool(PoolConfig(), tmp_path / storage, **shape, extra_bytes=extra_bytes)
        assert f"storage {storage}" in line
        pool.close()


def test_presets_are_the_released_script() -> None:
    recipe = SpaceshipNetConfig()
    assert (recipe.epochs, recipe.warmup_epochs, recipe.synthesis_steps, recipe.student_steps) == (200, 0, 200, 2000)
    assert (recipe.synthesis_batch_size, recipe.batch_size, recipe.generator_lr, recipe.student_lr) == (
        256,
        256,
        1e-3,
        0.1,
    )
    assert (recipe.ce_weight, recipe.bn_weight, recipe.kd_temperature, recipe.exchange_probability) == (
        0.5,
        1.0,
        30.0,
        0.7,
    )
    assert (recipe.student_momentum, recipe.student_weight_decay, recipe.student_lr_min) == (0.9, 1e-4, 0.0)
    for name, epochs in (("cifar10", 200), ("cifar100", 200), ("tiny-imagenet", 400)):
        found = load_config(default_config("spaceshipnet"), preset=name).method
        assert found == replace(recipe, epochs=epochs, grad_cam_stages=4)  # the scripts' ResNets hand out four stages


def test_golden_trajectory(method: SpaceshipNet, runtime: Any) -> None:
    """Five rounds of four steps."""
    found = trajectory(method, runtime, epochs=5, terms=("ce", "bn"))
    assert found["losses"].shape == (20, 2)
    check_golden("spaceshipnet", found)
