"""MSARC: its terms against versions with hooks, its ablations, its values; the formulas have tests of their own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import check_golden, trajectory
from released import HookedStatistics, masked_adversary
from rounds import begin_round
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.catalog import presets
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.errors import UserError
from dfkd_fast.generators.dcgan import SpatialAttention
from dfkd_fast.methods.base import Setup, weighted_sum
from dfkd_fast.methods.msarc import Msarc, MsarcConfig
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.pool.pool import PoolBatch

CONFIG = MsarcConfig(
    epochs=6,
    warmup_epochs=2,
    synthesis_batch_size=10,
    synthesis_steps=2,
    latent_dim=8,
    generator_width=16,
    crop_padding=2,
    reset_epoch=2,
)


@pytest.fixture
def method(make_method: Callable[..., Any]) -> Msarc:
    return make_method(Msarc, CONFIG)


def view(count: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    colour = 2 * torch.randn(count, 3, 1, 1, dtype=torch.float64, generator=generator)
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=generator) + colour


def student_terms(method: Msarc, setup: Setup, student: nn.Module) -> dict[str, Tensor]:
    """Of one step, as the loop takes it."""
    images = view()
    batch = PoolBatch(images, torch.zeros(10).long(), torch.arange(10), {})
    reads = method.student_reads()
    teacher = setup.teacher.answer(images, maps=reads.teacher, gradients=reads.teacher_gradients)
    out = NetOutput(student(images)) if reads.student is None else FeatureExtractor(student, maps=reads.student)(images)
    return method.student_loss(batch, teacher, out)


def test_synthesis_terms_equal_the_hooked_version(method: Msarc, teacher: nn.Module, student: nn.Module) -> None:
    """Three terms and d(term)/d(image) in float64 to 1e-9."""
    hooks = HookedStatistics(teacher, CONFIG.bn_momentum)
    images = view().requires_grad_()
    method.augment = nn.Identity()
    method.generator.forward = lambda: images  # the image itself is what is differentiated
    method.labels.random_(4)
    _, ours = method.step(adversarial=True)
    logits = teacher(images)
    theirs = {
        "ce": F.cross_entropy(logits, method.labels),
        "bn": hooks.loss(),
        "adv": masked_adversary(student(images), logits),
    }
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-9)
        gradients = [torch.autograd.grad(term, images, retain_graph=True)[0] for term in (ours[name], expected)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_student_loss_is_equation_17(method: Msarc, setup: Setup, teacher: nn.Module, student: nn.Module) -> None:
    """Distillation, the maps of all classes and two Grad-CAMs, the networks' own way: one stage at a time, by hand.

    Both toy networks have three convolutions; a stage ends in front of the second and of the third.
    """
    terms = student_terms(method, setup, student)

    def run(net: nn.Module) -> tuple[Tensor, list[Tensor]]:
        first = F.relu(net.bn1(net.conv1(view())))
        second = F.relu(net.bn2(net.conv2(first)))
        third = F.relu(net.bn3(net.conv3(second)))
        return net.fc(third.mean((2, 3))), [first, second, third]

    (t_logits, t_maps), (s_logits, s_maps) = run(teacher), run(student)
    classes = t_logits.argmax(1)
    p = torch.softmax(t_logits.detach() / 20, dim=1)
    kd = (p * (p.log() - torch.log_softmax(s_logits / 20, dim=1))).sum(1).mean() * 400
    torch.testing.assert_close(terms["kd"], kd, rtol=1e-9, atol=1e-9)
    deep = [
        (net.fc.weight.detach()[None, :, :, None, None] * maps[2][:, None]).sum(2)
        for net, maps in ((student, s_maps), (teacher, t_maps))
    ]
    expected = (deep[0] - deep[1].detach()).square().mean()
    for stage in range(2):
        cams = []
        for logits, maps in ((s_logits, s_maps), (t_logits, t_maps)):
            score = logits[torch.arange(10), classes].sum()
            weights = torch.autograd.grad(score, maps[stage], retain_graph=True)[0].mean((2, 3))
            cams.append((weights[:, :, None, None] * maps[stage]).sum(1))
        expected = expected + (cams[0] - cams[1].detach()).square().mean()
    torch.testing.assert_close(terms["msarc"], expected, rtol=1e-9, atol=1e-9)
    for weight in student.parameters():
        found, wanted = (
            torch.autograd.grad(kd_term + msarc, weight, retain_graph=True, allow_unused=True)[0]
            for kd_term, msarc in ((terms["kd"], terms["msarc"]), (kd, expected))
        )
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_layers_have_weights_of_their_own(make_method: Callable[..., Any], setup: Setup, student: nn.Module) -> None:
    """Eq. 9: alpha_l times each stage's distance, and the last one times that of the class maps, with gradients."""
    single = [
        student_terms(make_method(Msarc, replace(CONFIG, msarc_alpha=alpha)), setup, student)["msarc"]
        for alpha in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    ]
    together = student_terms(make_method(Msarc, replace(CONFIG, msarc_alpha=(0.5, 0.0, 3.0))), setup, student)["msarc"]
    expected = 0.5 * single[0] + 3 * single[2]
    torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(value, student.conv1.weight)[0] for value in (together, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    plain = student_terms(make_method(Msarc, CONFIG), setup, student)["msarc"]
    torch.testing.assert_close(sum(single), plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"msarc_alpha": (1.0, 2.0)},
            "--msarc-alpha 1.0 2.0: 2 stages and the class maps are compared; give 3 numbers",
        ),
        ({"msarc_alpha": (1.0, -2.0, 1.0)}, "--msarc-alpha 1.0 -2.0 1.0: choose numbers from 0 on"),
        ({"msarc_alpha": (1.0, 1.0, 1.0), "msarc_weight": 0.0}, "--msarc-weight 0: compares no layers; leave it or "),
        ({"meta_decay": 0.1, "start": "carry"}, "--meta-decay 0.1: --start carry learns no start; choose 0"),
    ],
)
def test_mistakes(make_method: Callable[..., Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        make_method(Msarc, replace(CONFIG, **settings))


def test_the_preset_as_printed(
    make_method: Callable[..., Any], setup: Setup, teacher: nn.Module, student: nn.Module
) -> None:
    """`cifar10-paper`: Eq. 6 without a gain, Eqs. 12 to 14, Eq. 16 with one kappa and the KL of all images."""
    loaded = load_config(default_config("msarc"), preset="cifar10-paper").method
    own = {"cam_weighting", "cam_relu", "softmax_gain", "adv_masked", "bn_weight", "ce_weight", "adv_weight"}
    printed = {name: getattr(loaded, name) for name in own}
    assert loaded == replace(MsarcConfig(), **printed)
    method = make_method(Msarc, replace(CONFIG, **printed))
    assert {module.gain for module in method.generator.modules() if isinstance(module, SpatialAttention)} == {"none"}
    method.augment = nn.Identity()
    images = view()
    method.generator.forward = lambda: images
    _, terms = method.step(adversarial=True)
    p, q = (torch.softmax(net(images), 1) for net in (teacher, student))
    whole = terms["bn"] + terms["ce"] - (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(weighted_sum(terms, method.config), whole, rtol=1e-9, atol=1e-9)
    found = student_terms(method, setup, student)["msarc"]
    expected = cam_distance(*(class_maps(net, images) for net in (student, teacher)))
    classes = teacher(images).argmax(1)
    for layer in ("conv2", "conv3"):
        expected = expected + cam_distance(*(printed_cam(net, images, layer, classes) for net in (student, teacher)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def class_maps(net: nn.Module, images: Tensor) -> Tensor:
    """Eq. 10, of all classes."""
    features = F.relu(net.bn3(net.conv3(inputs_of(net, images, "conv3")[0])))
    return torch.einsum("kp,bpij->bkij", net.fc.weight, features)


def printed_cam(net: nn.Module, images: Tensor, layer: str, classes: Tensor) -> Tensor:
    """Eqs. 11 to 14 of the map that `layer` reads."""
    maps, logits = inputs_of(net, images, layer)
    score = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, maps)
    return F.relu(((gradient * maps).mean((2, 3), keepdim=True) * maps).sum(1))


def cam_distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().mean()


def inputs_of(net: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    read: list[Tensor] = []
    handle = getattr(net, layer).register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    logits = net(images)
    handle.remove()
    return read[0], logits


def test_no_weight_of_the_teacher_asks_for_gradients(method: Msarc, setup: Setup, student: nn.Module) -> None:
    sum(student_terms(method, setup, student).values()).backward()
    assert all(weight.grad is None for weight in setup.teacher.net.parameters())
    assert setup.teacher._anchor.grad is None, "the backward pass went through the teacher"
    assert all(weight.grad is not None for weight in student.parameters())


def test_ablations(make_method: Callable[..., Any], setup: Setup, student: nn.Module) -> None:
    """Each flag takes out its part: no attention module, no term and no maps, no learned start, no adversary."""
    whole = make_method(Msarc, CONFIG)
    assert sum(isinstance(module, SpatialAttention) for module in whole.generator.modules()) == 4
    plain = make_method(Msarc, replace(CONFIG, attention=False))
    assert not any(isinstance(module, SpatialAttention) for module in plain.generator.modules())
    inconsistent = make_method(Msarc, replace(CONFIG, msarc_weight=0.0))
    reads = inconsistent.student_reads()
    assert (reads.student, reads.teacher, reads.teacher_features) == (None, (), False)
    assert student_terms(inconsistent, setup, student).keys() == {"kd"}
    assert whole.start.meta_parameters is not None
    assert make_method(Msarc, replace(CONFIG, start="carry")).start.meta_parameters is None
    quiet = make_method(Msarc, replace(CONFIG, adv_weight=0.0))
    for made, terms in ((whole, {"ce", "bn", "adv"}), (quiet, {"ce", "bn"})):
        assert made.step(**begin_round(made, 5))[1].keys() == terms


def test_the_papers_form_of_grad_cam(make_method: Callable[..., Any], setup: Setup, student: nn.Module) -> None:
    """Another number each time: none of the options is without effect."""
    settings = ({}, {"cam_weighting": "gradient_times_map"}, {"cam_relu": True}, {"grad_cam_stages": 1})
    terms = [
        student_terms(make_method(Msarc, replace(CONFIG, **setting)), setup, student)["msarc"] for setting in settings
    ]
    assert len({round(term.item(), 12) for term in terms}) == len(settings)
    deep = make_method(Msarc, replace(CONFIG, grad_cam_stages=0))
    reads = deep.student_reads()
    assert (reads.teacher, reads.teacher_features) == ((), True)  # more than logits, even without Grad-CAM
    assert 0 < student_terms(deep, setup, student)["msarc"] < terms[3]


def test_adversary_and_reset_follow_fast(method: Msarc) -> None:
    changed, active = [], []
    for epoch in range(6):
        before = method.start.weights.decoder.stem_norm.weight.clone()
        variant = begin_round(method, epoch)
        active.append("adv" in method.step(**variant)[1])
        changed.append(not torch.equal(method.start.weights.decoder.stem_norm.weight, before))
    assert active == [False, True, True, True, True, True]
    assert changed == [False, False, False, True, False, False]


def test_default_recipe_is_the_papers_table() -> None:
    recipe = MsarcConfig()
    assert (recipe.generator_lr, recipe.latent_lr, recipe.kd_temperature) == (0.005, 0.015, 20.0)
    assert (recipe.batch_size, recipe.attention_scale, recipe.synthesis_steps) == (128, 0.03, 2)
    assert (recipe.student_momentum, recipe.student_weight_decay, recipe.start) == (0.9, 1e-4, "fomaml")
    assert (recipe.epochs, recipe.warmup_epochs, recipe.student_steps, recipe.student_lr) == (220, 20, 400, 0.2)
    assert (recipe.ce_weight, recipe.bn_weight, recipe.adv_weight) == (0.5, 10.0, 1.33)


@pytest.mark.parametrize(
    "name", [name for name in presets("msarc") if "digits" not in name and name != "cifar10-paper"]
)
def test_one_recipe_for_all_data_sets(name: str) -> None:
    config = load_config(default_config("msarc"), preset=name)
    assert config.method == MsarcConfig()
    large = name in ("imagenette", "imagenet100", "pneumoniamnist")
    expected = 224 if large else 64 if name.endswith("mnist") else None
    assert config.image_size == expected


def test_golden_trajectory(method: Msarc, runtime: Any) -> None:
    """Five rounds of two steps: without and with the adversarial term, with the reset of the first layers."""
    found = trajectory(method, runtime, epochs=5, terms=("ce", "bn", "adv"))
    assert found["losses"].shape == (10, 3)
    check_golden("msarc", found | {"start": method.start.weights.decoder.stem.weight.mean(1)})
