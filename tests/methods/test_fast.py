"""Fast against a version with hooks and clones, written from the release's description; its schedule and presets."""

from __future__ import annotations

import copy
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from released import HookedStatistics, masked_adversary
from rounds import Rounds, begin_round
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.catalog import presets
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.fast import Fast, FastConfig

CONFIG = FastConfig(
    epochs=6,
    warmup_epochs=2,
    synthesis_batch_size=10,
    synthesis_steps=4,
    latent_dim=8,
    generator_width=8,
    crop_padding=2,
    reset_epoch=2,
)
PLAIN = replace(CONFIG, crop_padding=0, flip=False, reset_epoch=0)
IMAGENET = replace(
    PLAIN,
    start="reptile",
    reptile_scale=1.0,
    meta_lr=1e-4,
    meta_latent_lr=5e-3,
    meta_life=2,
    spatial_latents=True,
    select_iterate="last",
)


@pytest.fixture
def method(make_method: Callable[..., Any]) -> Fast:
    return make_method(Fast, CONFIG)


def naive_round(
    method: Fast,
    outer: torch.optim.Adam,
    start: nn.Module,
    hooks: HookedStatistics,
    networks: Any,
    *,
    adversarial: bool,
) -> Tensor:
    """One round as the release makes it: a clone of the generator, fresh optimisers, hooks. Returns the kept images."""
    teacher, student = networks
    config = method.config
    clone = copy.deepcopy(start).requires_grad_(True)
    groups = [
        {"params": list(clone.decoder.parameters()), "lr": config.generator_lr},
        {"params": [clone.latents], "lr": config.latent_lr},
    ]
    inner = torch.optim.Adam(groups, betas=(0.5, 0.999))
    best, kept = float("inf"), None
    outer.zero_grad()
    for _ in range(config.synthesis_steps):
        images = clone()
        view = (images - torch.tensor(method.info.mean).view(3, 1, 1)) / torch.tensor(method.info.std).view(3, 1, 1)
        hooks.inputs.clear()
        logits = teacher(view)
        loss = config.bn_weight * hooks.loss() + config.ce_weight * F.cross_entropy(logits, method.labels)
        if adversarial:
            loss = loss + config.adv_weight * masked_adversary(student(view), logits)
        if config.select_iterate == "last" or loss.item() < best:
            best, kept = loss.item(), images.detach().clone()
        inner.zero_grad()
        loss.backward()
        if config.start == "fomaml":
            for p, q in zip(start.parameters(), clone.parameters(), strict=True):
                p.grad = q.grad.clone() if p.grad is None else p.grad + q.grad
        inner.step()
    hooks.update()
    if config.start == "reptile":
        for p, q in zip(start.parameters(), clone.parameters(), strict=True):
            p.grad = config.reptile_scale * (p.detach() - q.detach())
    outer.step()
    return kept


def outer_adam(start: nn.Module, *, lr: float, latent_lr: float) -> torch.optim.Adam:
    start.requires_grad_(True)
    groups = [{"params": [p], "lr": latent_lr if name == "latents" else lr} for name, p in start.named_parameters()]
    return torch.optim.Adam(groups, betas=(0.5, 0.999))


@pytest.mark.parametrize(
    "config", [PLAIN, replace(PLAIN, start="reptile"), IMAGENET], ids=["fomaml", "reptile", "imagenet"]
)
def test_rounds_equal_the_release(
    make_method: Callable[..., Any], config: FastConfig, teacher: nn.Module, student: nn.Module, runtime: Any
) -> None:
    """Four rounds in float64: kept images and the start of the next round, the adversarial term from the second on."""
    method = make_method(Fast, config)
    rounds = Rounds(method, runtime)
    hooks = HookedStatistics(teacher, config.bn_momentum)
    start = copy.deepcopy(method.start.weights)
    lrs = {"lr": config.meta_lr or config.generator_lr * config.synthesis_steps, "latent_lr": config.meta_latent_lr}
    outer = outer_adam(start, **lrs)
    for epoch in range(4):
        torch.manual_seed(epoch)
        batch = rounds.round(epoch)
        torch.manual_seed(epoch)
        with torch.no_grad():
            if config.meta_life and (epoch + 1) % config.meta_life == 0:
                start.latents.normal_()
                outer = outer_adam(start, **lrs)
            if not config.meta_latent_lr:
                start.latents.normal_()
        kept = naive_round(method, outer, start, hooks, (teacher, student), adversarial=epoch >= 1)
        torch.testing.assert_close(batch.images, kept, rtol=1e-7, atol=1e-7)
        for (name, ours), theirs in zip(method.start.weights.named_parameters(), start.parameters(), strict=True):
            if name != "latents" or config.meta_latent_lr:
                torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)


def test_losses_and_image_gradients_equal_the_hooked_version(
    method: Fast, teacher: nn.Module, student: nn.Module
) -> None:
    """Three terms and d(term)/d(image) in float64 to 1e-9, before the first update of the EMA and after it."""
    hooks = HookedStatistics(teacher, CONFIG.bn_momentum)
    for round_index in range(2):
        torch.manual_seed(round_index)
        colour = 2 * torch.randn(10, 3, 1, 1, dtype=torch.float64)  # so that predictions differ, and some agree
        view = (torch.randn(10, 3, 16, 16, dtype=torch.float64) + colour).requires_grad_()
        method.augment = nn.Identity()
        method.generator.forward = lambda view=view: view  # the image itself is what is differentiated
        method.labels.random_(4)
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


def test_frozen_networks_get_no_weight_gradients(method: Fast, setup: Setup, runtime: Any) -> None:
    Rounds(method, runtime).round(1)
    assert all(p.grad is None for p in [*setup.teacher.net.parameters(), *setup.student.parameters()])
    assert all(p.grad is not None for p in method.generator.parameters())


def test_method_state_is_its_own(method: Fast) -> None:
    assert {name.split(".")[0] for name in method.state_dict()} == {"generator", "start", "statistics"}


def test_adversarial_term_starts_one_epoch_before_distillation(method: Fast) -> None:
    active = []
    for epoch in range(4):
        variant = begin_round(method, epoch)
        active.append("adv" in method.step(**variant)[1])
    assert active == [False, True, True, True]


def test_first_layers_of_the_start_are_drawn_anew_once(method: Fast) -> None:
    """The release counts epochs from 1: warm-up 2 + 2 is our epoch 3."""
    changed = []
    for epoch in range(6):
        before = {name: value.clone() for name, value in method.start.weights.named_parameters()}
        begin_round(method, epoch)
        changed.append(
            {name for name, value in method.start.weights.named_parameters() if not torch.equal(value, before[name])}
        )
    norm = "decoder.layers.norm0.weight"
    assert changed == [set(), set(), set(), {"decoder.stem.weight", "decoder.stem.bias", norm}, set(), set()]
    assert method.start.weights.get_parameter(norm).abs().max() < 0.1


def test_what_happens_once_in_an_epoch_happens_in_its_first_round(make_method: Callable[..., Any]) -> None:
    method = make_method(Fast, replace(IMAGENET, reset_epoch=0, image_budget=120))
    assert method.rounds(1) == 2
    torch.manual_seed(0)
    begin_round(method, 1)
    latents = method.start.weights.latents.clone()
    torch.manual_seed(0)
    begin_round(method, 1, 1)  # the first round is drawn as before, and nothing is learned in it
    assert torch.equal(method.start.weights.latents, latents)


def test_latents_and_labels_are_drawn_each_round(method: Fast) -> None:
    torch.manual_seed(0)
    begin_round(method, 0)
    latents, labels = method.generator.latents.detach().clone(), method.labels.clone()
    weights = method.generator.decoder.stem.weight.detach().clone()
    begin_round(method, 0)
    assert not torch.equal(method.generator.latents, latents)
    assert not torch.equal(method.labels, labels)
    assert torch.equal(method.generator.decoder.stem.weight, weights)
    assert set(method.labels.tolist()) <= set(range(4))


def test_published_image_budget(setup: Setup) -> None:
    """220 rounds of 256; and MUSE's ten rounds of 100 spread over 100 epochs."""
    (plan,) = Fast(FastConfig(generator_width=8), setup).pools()
    assert plan.capacity == 56_320
    spread = Fast(FastConfig(epochs=100, image_budget=1000, synthesis_batch_size=100, generator_width=8), setup)
    (plan,) = spread.pools()
    assert plan.capacity == 1000
    assert [epoch for epoch in range(100) if spread.rounds(epoch)] == list(range(0, 100, 10))


def test_spatial_latents_have_no_first_layer_to_reset(setup: Setup) -> None:
    with pytest.raises(UserError, match=r"--method\.reset-epoch 120: spatial latents have no such layers; choose 0"):
        Fast(FastConfig(spatial_latents=True), setup)


SCRIPT = {2: (5e-3, 1.5e-2), 5: (3e-3, 1e-2), 10: (2e-3, 1e-2)}
WEIGHTS = {"wrn40_2": (1.1, 0.4), "resnet34": (1.33, 0.5), "vgg11": (1.0, 0.5)}


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("steps", SCRIPT)
def test_cifar_presets_are_the_released_script(dataset: str, steps: int) -> None:
    """Every pair's row of the script, with the flags that the preset gives for it."""
    name = f"{dataset}-fast{steps}"
    about = tomllib.loads(presets("fast")[name].read_text())["preset"]
    default = default_config("fast")
    for entry in [{"teacher": "wrn40_2"}, *about["published"]]:
        recipe = load_config(default, preset=name, flags=shlex.split(entry.get("flags", ""))).method
        assert (recipe.generator_lr, recipe.latent_lr) == SCRIPT[steps]
        assert (recipe.adv_weight, recipe.ce_weight) == WEIGHTS[entry["teacher"]]
        assert recipe == replace(
            FastConfig(),
            synthesis_steps=steps,
            generator_lr=recipe.generator_lr,
            latent_lr=recipe.latent_lr,
            adv_weight=recipe.adv_weight,
            ce_weight=recipe.ce_weight,
        )
    assert len(about["published"]) == 4


def test_default_recipe_is_the_released_script() -> None:
    recipe = FastConfig()
    assert (recipe.epochs, recipe.warmup_epochs, recipe.synthesis_batch_size, recipe.batch_size) == (220, 20, 256, 256)
    assert (recipe.student_steps, recipe.student_lr, recipe.kd_temperature, recipe.bn_weight) == (400, 0.2, 20.0, 10.0)
    assert (recipe.start, recipe.reset_epoch, recipe.bn_momentum, recipe.latent_dim) == ("fomaml", 120, 0.9, 256)


def test_imagenet_preset_is_the_released_log() -> None:
    config = load_config(default_config("fast"), preset="imagenet-fast50")
    recipe = config.method
    assert recipe.warmup_epochs * recipe.synthesis_batch_size == 140_000
    assert recipe.epochs - recipe.warmup_epochs == 400 * 10
    assert (recipe.synthesis_steps, recipe.student_steps, recipe.batch_size) == (50, 100, 100)
    assert (recipe.generator_lr, recipe.latent_lr, recipe.meta_lr, recipe.meta_latent_lr) == (2e-4, 0.01, 1e-4, 5e-3)
    assert (recipe.start, recipe.reptile_scale, recipe.meta_life, recipe.select_iterate) == ("reptile", 1.0, 50, "last")
    assert (recipe.ce_weight, recipe.bn_weight, recipe.adv_weight, recipe.kd_temperature) == (0.1, 0.1, 0.1, 5.0)
    assert (recipe.crop_scale, recipe.student_lr, recipe.student_lr_min) == (0.75, 0.1, 0.0)


@pytest.mark.parametrize(("dataset", "images"), [("imagenette", 1000), ("imagewoof", 1000), ("imagenet", 100_000)])
def test_fast100_presets_keep_the_data_ratio(dataset: str, images: int) -> None:
    """10 % is 100 images a class at full resolution."""
    config = load_config(default_config("fast"), preset=f"{dataset}-fast100")
    assert (config.method.image_budget, config.method.synthesis_steps) == (images, 100)
    # ten classes, and so never ImageNet's weights: those are what "tv:" fetches without a number of classes
    assert config.num_classes == (None if dataset == "imagenet" else 10)


def test_golden_trajectory(method: Fast, runtime: Any) -> None:
    """Five rounds of four steps: without and with the adversarial term, with the reset of the first layers."""
    found = trajectory(method, runtime, epochs=5, terms=("ce", "bn", "adv"))
    assert found["losses"].shape == (20, 3)
    check_golden("fast", found | {"start": method.start.weights.decoder.stem.weight.mean(1)})
