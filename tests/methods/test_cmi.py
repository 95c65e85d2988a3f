"""CMI against a version with hooks, its bank and head over the rounds, its presets, its golden trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from released import masked_adversary
from rounds import Rounds, begin_round
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.cmi.method import Cmi, CmiConfig
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.teacher import FrozenNet, frozen_alias

SMALL = {
    "epochs": 6,
    "warmup_epochs": 2,
    "synthesis_batch_size": 6,
    "synthesis_steps": 4,
    "latent_dim": 8,
    "generator_width": 16,
    "head_features": 5,
    "bank_size": 18,
    "num_negatives": 12,
    "crop_padding": 2,
}


class Mirror(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flip(3)


class Hooked:
    """The released codes' way: forward hooks on every BatchNorm, for its statistics and for each image's means."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.distance = torch.zeros((), dtype=torch.float64)
        self.means: list[Tensor] = []
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_hook(self.hook)

    def hook(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        rows = inputs[0].permute(1, 0, 2, 3).flatten(1)
        self.distance = self.distance + torch.norm(layer.running_var - rows.var(1, unbiased=False))
        self.distance = self.distance + torch.norm(layer.running_mean - rows.mean(1))
        self.means.append(inputs[0].mean((2, 3)))

    def __call__(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.distance, self.means = torch.zeros((), dtype=torch.float64), []
        return self.model(view), self.distance, torch.cat(self.means, dim=1)


def contrastive(head: nn.Module, local: Tensor, whole: Tensor, cached: Tensor) -> Tensor:
    """Cross-entropy to the diagonal of the matrix of all similarities; new and cached rows are averaged apart."""
    cached_local, cached_global = cached.chunk(2, dim=1)
    projected = head(torch.cat([local, cached_local, whole, cached_global]))
    projected_local, projected_global = projected.chunk(2)
    logits = projected_local @ projected_global.detach().T / 0.1
    losses = F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")
    new = losses[: len(local)].mean()
    return new + losses[len(local) :].mean() if len(cached) else new


@pytest.fixture
def method(make_method: Callable[..., Any]) -> Cmi:
    return make_method(Cmi, CmiConfig(**SMALL))


@pytest.mark.parametrize("stored", [0, 4, 12])
def test_terms_and_gradients_equal_the_hooked_version(
    method: Cmi, teacher: nn.Module, student: nn.Module, stored: int
) -> None:
    """Four terms, d(term)/d(image) and d(contrastive)/d(head) in float64 to 1e-9: bank empty, part filled, enough."""
    method.global_view, method.local_view = nn.Identity(), Mirror()
    torch.manual_seed(0)
    cached = torch.randn(12, method.bank.rows.shape[1], dtype=torch.float64)[:stored]
    method.bank.add(cached)
    colour = 2 * torch.randn(6, 3, 1, 1, dtype=torch.float64)  # so that predictions differ, and some agree
    view = (torch.randn(6, 3, 16, 16, dtype=torch.float64) + colour).requires_grad_()
    method.generator.forward = lambda: view
    _, ours = method.step(adversarial=True)
    hooked = Hooked(teacher)
    logits, distance, whole = hooked(view)
    _, _, local = hooked(view.flip(3))
    theirs = {
        "ce": F.cross_entropy(logits, method.labels),
        "bn": distance,
        "adv": masked_adversary(student(view), logits),
        "contrastive": contrastive(method.head, local, whole, cached),
    }
    assert ours.keys() == theirs.keys()
    for name in theirs:
        (found,) = torch.autograd.grad(ours[name], view, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs[name], view, retain_graph=True)
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert found.abs().max() > 0
    weights = list(method.head.parameters())
    found = torch.autograd.grad(ours["contrastive"], weights, retain_graph=True)
    expected = torch.autograd.grad(theirs["contrastive"], weights)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(method.features, torch.cat([local, whole], dim=1).detach(), rtol=1e-9, atol=1e-9)


def test_bank_gets_the_features_of_the_images_that_are_kept(method: Cmi, runtime: Any) -> None:
    rounds = Rounds(method, runtime)
    seen = []

    def on_step(_terms: dict[str, Tensor], _images: int) -> None:
        seen.append((float(rounds.engine.best_loss), method.features.clone()))

    rounds.round(0, 0, on_step)
    best = min(range(4), key=lambda step: (seen[step][0], step))  # the running minimum: its first step is the best
    assert torch.equal(method.bank.rows[:6], seen[best][1])
    assert not torch.equal(method.bank.rows[:6], seen[0][1])
    assert int(method.bank.written) == 6
    rounds.round(1, 0, on_step)
    assert int(method.bank.written) == 12


def test_head_keeps_its_adam_and_the_generator_starts_anew(method: Cmi, runtime: Any) -> None:
    rounds = Rounds(method, runtime)
    addresses = [value.data_ptr() for value in method.parameters()]
    for epoch in range(2):
        rounds.round(epoch)
    generator, head = rounds.engine.optimizers
    assert {int(state["step"]) for state in generator.state.values()} == {4}
    assert {int(state["step"]) for state in head.state.values()} == {8}
    assert head.param_groups[0]["betas"] == (0.9, 0.999)
    assert [value.data_ptr() for value in method.parameters()] == addresses


def test_a_round_starts_with_another_generator(make_method: Callable[..., Any]) -> None:
    method = make_method(Cmi, CmiConfig(**SMALL | {"latent_dim": 256, "generator_width": 128}))
    before = {name: value.detach().clone() for name, value in method.generator.named_parameters()}
    begin_round(method, 0)
    assert abs(method.generator.latents.std().item() - 1) < 0.1
    for name, value in method.generator.decoder.named_parameters():
        if name.endswith("bias"):
            assert not value.any()
            continue
        is_norm = value.dim() == 1
        assert not torch.equal(value, before[f"decoder.{name}"])
        assert value.mean().item() == pytest.approx(1.0 if is_norm else 0.0, abs=0.01)
        assert value.std().item() == pytest.approx(0.02, rel=0.3 if is_norm else 0.05)


def test_head_learns_in_mixed_precision(teacher: nn.Module, student: nn.Module, setup: Setup) -> None:
    """Autocast keeps the weights that it has cast: they must have been cast with a graph."""
    runtime = make_runtime(device="cpu", precision="bf16")
    info = setup.info
    frozen = FrozenNet(teacher.float(), info, runtime)
    torch.manual_seed(0)
    method = Cmi(CmiConfig(**SMALL), Setup(frozen, frozen_alias(student.float()), info, setup.label_embeddings))
    runtime.place(method)
    Rounds(method, runtime).engine.step({"adversarial": False})
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in method.head.parameters())


def test_without_the_contrastive_term(make_method: Callable[..., Any], runtime: Any) -> None:
    method = make_method(Cmi, CmiConfig(**SMALL, contrastive_weight=0.0))
    assert method.step(**begin_round(method, 2))[1].keys() == {"ce", "bn", "adv"}
    Rounds(method, runtime).round(0)


def test_adversarial_term_starts_with_distillation(method: Cmi) -> None:
    active = []
    for epoch in range(4):
        variant = begin_round(method, epoch)
        active.append("adv" in method.step(**variant)[1])
    assert active == [False, False, True, True]


def test_named_layers_give_their_inputs(setup: Setup, runtime: Any) -> None:
    """layer1 to layer3 of ResNet-8 read 16, 16 and 32 channels."""
    info = setup.info
    network, _ = load_model(
        "resnet8", num_classes=info.num_classes, image_size=info.image_size, mean=info.mean, std=info.std
    )
    resnet = setup._replace(teacher=FrozenNet(network.double(), info, runtime))
    method = Cmi(CmiConfig(**SMALL, feature_layers=("layer1", "layer2", "layer3")), resnet)
    assert method.head[0].in_features == 16 + 16 + 32
    with pytest.raises(UserError, match=r"^--method\.feature-layers: maps 'layer9:input': no such module"):
        Cmi(CmiConfig(**SMALL, feature_layers=("layer9",)), resnet)


def preset(name: str) -> Any:
    return load_config(default_config("cmi"), preset=name).method


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cifar10-scratch", "cifar10-preinverted"])
def test_presets_share_the_released_values(name: str) -> None:
    config = preset(name)
    assert (config.synthesis_batch_size, config.synthesis_steps, config.generator_lr) == (256, 200, 1e-3)
    assert (config.latent_dim, config.bank_size, config.num_negatives, config.head_features) == (256, 40960, 4096, 256)
    assert (config.bn_weight, config.contrastive_weight, config.contrastive_temperature) == (1, 0.8, 0.1)
    assert (config.batch_size, config.student_lr, config.student_lr_min, config.kd_temperature) == (128, 0.1, 0, 20)


def test_three_protocols(setup: Setup) -> None:
    """50,000 images and 40 x 2000 adversarial steps; 200 x 400 from scratch; 50,000 images and 200 passes."""
    adversarial, scratch, first = preset("cifar10"), preset("cifar10-scratch"), preset("cifar10-preinverted")
    assert (adversarial.epochs - adversarial.warmup_epochs, adversarial.student_steps) == (40, 2000)
    assert (adversarial.ce_weight, adversarial.adv_weight) == (0.5, 0.5)
    assert adversarial.warmup_epochs * adversarial.warmup_rounds * 256 == 50_176
    assert (scratch.epochs, scratch.warmup_epochs, scratch.student_steps) == (200, 0, 400)
    assert (scratch.ce_weight, scratch.adv_weight) == (1, 0.5)
    assert (first.epochs - first.warmup_epochs, first.rounds, first.adv_weight) == (200, 0, 0)
    assert first.student_steps * first.batch_size == pytest.approx(50_176, rel=0.003)
    (plan,) = Cmi(replace(adversarial, bank_size=256), setup).pools()
    assert plan.capacity == 50_176 + 40 * 256


def test_values_that_cannot_be(setup: Setup) -> None:
    with pytest.raises(UserError, match=r"^--method\.bank-size 5: choose 6 or more, the images of a round$"):
        Cmi(CmiConfig(**SMALL | {"bank_size": 5}), setup)
    with pytest.raises(UserError, match=r"^--method\.local-scale 1\.5: choose a share between 0 and 1$"):
        Cmi(CmiConfig(**SMALL, local_scale=1.5), setup)


def test_golden_trajectory(method: Cmi, runtime: Any) -> None:
    """20 steps: 5 rounds of 4, with and without the adversarial term, the bank empty, growing and overwritten."""
    found = trajectory(method, runtime, epochs=5, terms=("ce", "bn", "adv", "contrastive"))
    assert found["losses"].shape == (20, 4)
    check_golden("cmi", found | {"bank": method.bank.rows.mean(1)})
