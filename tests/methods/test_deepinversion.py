"""DeepInversion against a version with hooks, its stages and schedules, its presets, its golden trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from rounds import Rounds, begin_round
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.deepinversion import DeepInversion, DeepInversionConfig
from dfkd_fast.methods.inner import Variant

SMALL = {"epochs": 5, "synthesis_batch_size": 6, "synthesis_steps": 4, "jitter": 0, "jitter_flip": False}
EVERY_TERM = {"tv_l1_weight": 0.5, "tv_l2_weight": 0.5, "l2_weight": 0.5, "first_bn_weight": 10.0}


def statistics(model: nn.Module, view: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits, and as the released codes have them: what a forward hook on every BatchNorm sees of its input."""
    found: list[tuple[Tensor, Tensor]] = []

    def hook(layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        rows = inputs[0].permute(1, 0, 2, 3).flatten(1)
        found.append(
            (torch.norm(layer.running_var - rows.var(1, unbiased=False)), torch.norm(layer.running_mean - rows.mean(1)))
        )

    handles = [layer.register_forward_hook(hook) for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    logits = model(view)
    for handle in handles:
        handle.remove()
    return logits, found


def jensen_shannon(student: Tensor, teacher: Tensor) -> Tensor:
    p, q = F.softmax(student / 3, 1), F.softmax(teacher / 3, 1)
    m = torch.clamp(0.5 * (p + q), 0.01, 0.99)
    p, q = torch.clamp(p, 0.01, 0.99), torch.clamp(q, 0.01, 0.99)
    halves = (F.kl_div(other.log(), m, reduction="batchmean") for other in (p, q))
    return 0.5 * sum(halves)


def differences(view: Tensor) -> list[Tensor]:
    return [
        view[:, :, :, :-1] - view[:, :, :, 1:],
        view[:, :, :-1, :] - view[:, :, 1:, :],
        view[:, :, 1:, :-1] - view[:, :, :-1, 1:],
        view[:, :, :-1, :-1] - view[:, :, 1:, 1:],
    ]


@pytest.mark.parametrize("low_res", [False, True])
def test_terms_and_pixel_gradients_equal_the_hooked_version(
    make_method: Callable[..., Any], teacher: nn.Module, student: nn.Module, low_res: bool
) -> None:
    """Every term and d(term)/d(pixels) in float64 to 1e-9, at both resolutions."""
    config = DeepInversionConfig(**SMALL, **EVERY_TERM, low_res_steps=2)
    method = make_method(DeepInversion, config)
    variant = begin_round(method, 0)
    _, ours = method.step(**variant | {"low_res": low_res})
    pixels = method.pixels.detach().clone().requires_grad_()
    view = F.avg_pool2d(pixels, 2) if low_res else pixels
    assert view.shape[-1] == (8 if low_res else 16)
    logits, layers = statistics(teacher, view)
    theirs = {
        "ce": F.cross_entropy(logits, method.labels),
        "bn": sum((10 if index == 0 else 1) * (var + mean) for index, (var, mean) in enumerate(layers)),
        "adv": 1 - jensen_shannon(student(view), logits),
        "tv_l1": sum(difference.abs().mean() for difference in differences(view)),
        "tv_l2": sum(difference.norm() for difference in differences(view)),
        "l2": view.flatten(1).norm(dim=1).mean(),
    }
    assert ours.keys() == theirs.keys()
    for name in theirs:
        (found,) = torch.autograd.grad(ours[name], method.pixels, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs[name], pixels, retain_graph=True)
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert found.abs().max() > 0


def test_a_round_is_adam_on_the_pixels(make_method: Callable[..., Any], runtime: Any, teacher: nn.Module) -> None:
    """Three steps against torch's own Adam, with clipping; the images kept are those of the lowest loss."""
    method = make_method(DeepInversion, DeepInversionConfig(**SMALL | {"synthesis_steps": 3}, adv_weight=0.0))
    rounds = Rounds(method, runtime)
    torch.manual_seed(0)
    kept = rounds.round(0)
    last = method.pixels.detach().clone()
    torch.manual_seed(0)
    begin_round(method, 0)
    pixels, labels = method.pixels.detach().clone().requires_grad_(), method.labels.clone()
    assert torch.equal(labels, kept.labels)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (method.info.mean, method.info.std))
    mean, std = mean.double(), std.double()
    adam = torch.optim.Adam([pixels], 0.1, betas=(0.5, 0.99))
    seen = []
    for _ in range(3):
        logits, layers = statistics(teacher, pixels)
        loss = F.cross_entropy(logits, labels) + 10 * sum(var + average for var, average in layers)
        seen.append((loss.item(), pixels.detach() * std + mean))
        adam.zero_grad()
        loss.backward()
        adam.step()
        pixels.data = torch.minimum(torch.maximum(pixels.data, -mean / std), (1 - mean) / std)
    best = min(seen, key=lambda step: step[0])[1].clamp(0, 1)
    torch.testing.assert_close(kept.images, best, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(last, pixels.detach(), rtol=1e-9, atol=1e-9)


def test_stages_start_optimiser_and_best_iterate_anew(make_method: Callable[..., Any], runtime: Any) -> None:
    """The loss at low resolution is another loss: its best image must not win over the second stage's."""
    method = make_method(DeepInversion, DeepInversionConfig(**SMALL, low_res_steps=3))
    rounds = Rounds(method, runtime)
    engine = rounds.engine
    sizes, steps = [], []

    def watched_step(_key: Hashable, variant: Variant) -> dict[str, Tensor]:
        state = engine.fresh.state.get(method.pixels, {})
        steps.append(int(state["step"]) if state else 0)
        sizes.append(variant["low_res"])
        terms = engine.step(variant)
        if variant["low_res"]:
            engine.best_loss.fill_(-1e9)  # no image of the second stage could be better
        return terms

    engine.run_step = watched_step
    kept = rounds.round(0)
    assert sizes == [True, True, True, False]
    assert steps == [0, 1, 2, 0]
    assert kept.images.shape == (6, 3, 16, 16)
    assert engine.best_loss > -1e9


def lr_scales(method: DeepInversion, steps: int) -> list[float]:
    """Of each step of a stage."""

    class Asked:
        def run(self, steps: int, lr_scale: Callable[[int], float], _variant: Variant) -> list[float]:
            return [lr_scale(step) for step in range(steps)]

    method.inner.engine = Asked()
    return method.optimize(steps, adversarial=False, low_res=False)


def test_learning_rate_of_the_original(make_method: Callable[..., Any], runtime: Any) -> None:
    """Linear over the first steps, then a cosine to 0, in each stage; constant without warm-up."""
    method = make_method(DeepInversion, DeepInversionConfig(lr_warmup_steps=100, image_lr=0.2))
    rates = [0.2 * scale for scale in lr_scales(method, 2000)]
    assert rates[0] == pytest.approx(0.002)
    assert rates[99] == pytest.approx(0.2)
    assert rates[100] == pytest.approx(0.2)
    assert rates[1050] == pytest.approx(0.1)
    assert rates[1999] == pytest.approx(0.1 * (1 + math.cos(math.pi * 1899 / 1900)))
    constant = make_method(DeepInversion, DeepInversionConfig())
    assert set(lr_scales(constant, 1000)) == {1.0}
    used = []
    scheduled = make_method(DeepInversion, DeepInversionConfig(**SMALL, lr_warmup_steps=2))
    rounds = Rounds(scheduled, runtime)
    rounds.round(0, 0, lambda *_: used.append(rounds.engine.fresh.param_groups[0]["lr"]))
    assert used == pytest.approx([0.05, 0.1, 0.1, 0.05])


def test_competition_waits_for_the_warmup(make_method: Callable[..., Any]) -> None:
    method = make_method(DeepInversion, DeepInversionConfig(**SMALL, warmup_epochs=2))
    active = []
    for epoch in range(4):
        variant = begin_round(method, epoch)
        active.append("adv" in method.step(**variant)[1])
    assert active == [False, False, True, True]
    alone = make_method(DeepInversion, DeepInversionConfig(**SMALL, adv_weight=0.0))
    assert alone.step(**begin_round(alone, 0))[1].keys() == {"ce", "bn"}


def test_jitter_moves_what_the_networks_see_only(make_method: Callable[..., Any]) -> None:
    method = make_method(DeepInversion, DeepInversionConfig(**SMALL | {"jitter": 3, "jitter_flip": True}))
    variant = begin_round(method, 0)
    method.pixels.detach().clamp_(-0.5, 0.5)
    images = [method.step(**variant)[0] for _ in range(4)]
    assert all(torch.equal(image, images[0]) for image in images)
    losses = {method.step(**variant)[1]["bn"].item() for _ in range(6)}
    assert len(losses) > 1


def test_images_first_then_the_student(make_method: Callable[..., Any]) -> None:
    method = make_method(DeepInversion, DeepInversionConfig(epochs=6, warmup_epochs=3, warmup_rounds=2, rounds=0))
    assert [method.rounds(epoch) for epoch in range(6)] == [2, 2, 2, 0, 0, 0]
    (plan,) = method.pools()
    assert plan.capacity == 6 * 256


def test_labels(make_method: Callable[..., Any]) -> None:
    method = make_method(DeepInversion, DeepInversionConfig(**SMALL, balanced=True))
    begin_round(method, 0)
    assert method.labels[:4].tolist() == [0, 1, 2, 3]
    drawn = make_method(DeepInversion, DeepInversionConfig(**SMALL | {"synthesis_batch_size": 100}))
    begin_round(drawn, 0)
    assert set(drawn.labels.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("wrong", [{"jitter": 16}, {"jitter": -1}, {"low_res_steps": 1000}])
def test_values_that_cannot_be(setup: Setup, wrong: dict[str, int]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(UserError, match=rf"--method\.{name.replace('_', '-')} {value}: choose from 0 to \d+$"):
        DeepInversion(DeepInversionConfig(**wrong), setup)


def preset(name: str) -> Any:
    return load_config(default_config("deepinversion"), preset=name)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_presets_of_the_re_implementation(name: str, setup: Setup) -> None:
    """256 images, "2k" steps, Adam 0.1 (.5, .99), 10 BN + CE - JS, jitter H/8; then 200 x 400 student steps at 0.1."""
    method = preset(name).method
    assert (method.synthesis_batch_size, method.synthesis_steps, method.rounds) == (256, 2000, 1)
    assert (method.image_lr, method.image_betas, method.jitter, method.jitter_flip) == (0.1, (0.5, 0.99), 4, True)
    assert (method.bn_weight, method.ce_weight, method.adv_weight) == (10, 1, 1)
    assert (method.tv_l1_weight, method.tv_l2_weight, method.l2_weight) == (0, 0, 0)
    assert (method.epochs, method.student_steps, method.batch_size) == (200, 400, 256)
    assert (method.student_lr, method.student_lr_min, method.kd_temperature) == (0.1, 0, 20)
    (plan,) = DeepInversion(method, setup).pools()
    assert plan.capacity == 200 * 256


def test_presets_of_the_original() -> None:
    cifar = preset("cifar10-original").method
    assert (cifar.synthesis_batch_size, cifar.synthesis_steps, cifar.image_betas) == (256, 2000, (0.9, 0.999))
    assert (cifar.image_lr, cifar.jitter, cifar.jitter_flip, cifar.clip, cifar.balanced) == (0.1, 2, False, False, True)
    assert (cifar.bn_weight, cifar.tv_l2_weight, cifar.l2_weight, cifar.adv_clamp) == (100, 2.5e-5, 0, True)
    imagenet = preset("imagenet").method
    assert (imagenet.synthesis_steps, imagenet.low_res_steps, imagenet.lr_warmup_steps) == (3000, 2000, 100)
    assert (imagenet.image_lr, imagenet.image_betas, imagenet.jitter) == (0.25, (0.5, 0.9), 30)
    assert (imagenet.bn_weight, imagenet.first_bn_weight, imagenet.adv_weight) == (0.01, 10, 0.2)
    assert (imagenet.tv_l1_weight, imagenet.tv_l2_weight, imagenet.l2_weight) == (0, 1e-4, 1e-5)
    rounds = imagenet.warmup_epochs * imagenet.warmup_rounds
    rounds += (imagenet.epochs - imagenet.warmup_epochs) * imagenet.rounds
    assert rounds * imagenet.synthesis_batch_size == pytest.approx(140_000, rel=0.02)


def test_golden_trajectory(make_method: Callable[..., Any], runtime: Any) -> None:
    """20 steps: 5 rounds of 4, two of them at low resolution, with and without competition, every term at work."""
    config = DeepInversionConfig(
        **SMALL | {"jitter": 2, "jitter_flip": True}, **EVERY_TERM, low_res_steps=2, lr_warmup_steps=1, warmup_epochs=2
    )
    terms = ("ce", "bn", "adv", "tv_l1", "tv_l2", "l2")
    found = trajectory(make_method(DeepInversion, config), runtime, epochs=5, terms=terms)
    assert found["losses"].shape == (20, 6)
    check_golden("deepinversion", found)
