"""SSD-KD against Eq. 1 to 6 written out in float64, its buffer and priorities through the loop, its presets."""

from __future__ import annotations

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
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.generators.meta_init import Start
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.fast import FastConfig
from dfkd_fast.methods.ssdkd import Ssdkd, SsdkdConfig
from dfkd_fast.models.teacher import NetOutput
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.pool.pool import Pool, PoolBatch
from dfkd_fast.training.inner import ignore
from dfkd_fast.training.student import StudentTrainer

CONFIG = SsdkdConfig(
    epochs=6,
    warmup_epochs=2,
    synthesis_batch_size=10,
    synthesis_steps=4,
    buffer_size=25,
    batch_size=12,
    student_steps=3,
    latent_dim=8,
    generator_width=8,
    crop_padding=2,
)


def open_pool(method: Ssdkd, runtime: Runtime) -> Pool:
    (plan,) = method.pools()
    pool = Pool(plan.capacity, (3, 16, 16), runtime=runtime, num_classes=4, policy=plan.policy)
    plan.opened(pool)
    return pool


@pytest.fixture
def method(make_method: Callable[..., Any], runtime: Runtime) -> Ssdkd:
    made = make_method(Ssdkd, CONFIG)
    open_pool(made, runtime)
    return made


def kl_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p = F.softmax(teacher / temperature, 1)
    return (p * (p.log() - F.log_softmax(student / temperature, 1))).sum(1) * temperature**2


def test_losses_and_image_gradients_equal_the_hooked_version(
    method: Ssdkd, teacher: nn.Module, student: nn.Module
) -> None:
    """Eq. 1 to 3 in float64 to 1e-9, values and d(term)/d(image), for a buffer in which classes are unequal."""
    hooks = HookedStatistics(teacher, CONFIG.bn_momentum)
    method.pool.add(torch.rand(9, 3, 16, 16), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2]))
    for round_index in range(2):
        torch.manual_seed(round_index)
        variant = begin_round(method, 3)
        colour = 2 * torch.randn(10, 3, 1, 1, dtype=torch.float64)  # so that predictions differ, and some agree
        view = (torch.randn(10, 3, 16, 16, dtype=torch.float64) + colour).requires_grad_()
        method.augment = nn.Identity()
        method.generator.forward = lambda view=view: view  # the image itself is what is differentiated
        _, ours = method.step(**variant)
        hooks.inputs.clear()
        logits = teacher(view)
        confidence, predicted = F.softmax(logits, 1).max(1)
        share = torch.tensor([5, 2, 2, 0], dtype=torch.float64)[predicted] / 9
        phi = ((1 - share) * (1 - confidence) ** 2).detach()
        theirs = {
            "ce": (phi * F.cross_entropy(logits, method.labels, reduction="none")).mean(),
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


def test_new_images_get_the_teachers_class_and_their_loss_as_priority(
    method: Ssdkd, teacher: nn.Module, student: nn.Module, runtime: Runtime
) -> None:
    """Alg. 1 lines 12 and 13: Eq. 4 with w = 1, on the image as it is."""
    batch = Rounds(method, runtime).round(1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (method.info.mean, method.info.std))
    view = (batch.images - mean) / std
    with torch.no_grad():
        torch.testing.assert_close(
            batch.initial_priorities, kl_rows(student(view), teacher(view), 20.0), rtol=1e-9, atol=1e-9
        )
        assert torch.equal(batch.labels, teacher(view).argmax(1))


def test_student_loss_and_new_priorities_are_equations_4_to_6(method: Ssdkd) -> None:
    """Value, gradient and priorities from the buffer's deltas; a slot drawn twice keeps the larger priority."""
    deltas = torch.rand(20, generator=torch.Generator().manual_seed(0)).double()
    method.priorities.update(torch.arange(20), deltas)
    alpha, beta, eps = CONFIG.priority_exponent, CONFIG.is_exponent, CONFIG.priority_eps
    powers = (deltas + eps) ** alpha
    probability = powers / powers.sum()  # Eq. 6
    torch.manual_seed(0)
    slots, is_weights = method.priorities.sample(12)
    expected_weights = (20 * probability[slots]) ** -beta  # Eq. 5
    torch.testing.assert_close(is_weights.double(), expected_weights, rtol=1e-6, atol=1e-6)
    teacher = torch.randn(12, 4, dtype=torch.float64)
    student = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    batch = PoolBatch(torch.empty(12, 3, 16, 16), torch.zeros(12).long(), slots, {}, is_weights)
    found = method.student_loss(batch, NetOutput(teacher), NetOutput(student))["kd"]
    rows = kl_rows(student, teacher, 20.0)
    expected = (is_weights * rows).mean()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    (ours,), (theirs,) = torch.autograd.grad(found, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    leaves = powers.clone()
    for slot in set(slots.tolist()):
        drawn = slots == slot
        leaves[slot] = ((is_weights[drawn] * rows.detach()[drawn] + eps) ** alpha).max()
    torch.testing.assert_close(method.priorities.leaves[:20].double(), leaves, rtol=1e-5, atol=1e-7)
    assert len(set(slots.tolist())) < 12  # some slot was drawn twice


@pytest.mark.parametrize(("normalized", "weighted"), [(True, True), (False, False)])
def test_other_readings_of_the_importance_weights(
    make_method: Callable[..., Any], runtime: Runtime, normalized: bool, weighted: bool
) -> None:
    """Divided by the largest of the batch; or in the new priorities alone, as line 18 has it."""
    method = make_method(Ssdkd, replace(CONFIG, is_normalized=normalized, is_weighted_loss=weighted))
    open_pool(method, runtime)
    slots, is_weights = torch.tensor([7, 2, 5]), torch.tensor([0.5, 4.0, 1.0])
    teacher, student = torch.randn(2, 3, 4, dtype=torch.float64)
    batch = PoolBatch(torch.empty(3, 3, 16, 16), torch.zeros(3).long(), slots, {}, is_weights)
    found = method.student_loss(batch, NetOutput(teacher), NetOutput(student))["kd"]
    rows, weights = kl_rows(student, teacher, 20.0), is_weights.double() / (4 if normalized else 1)
    torch.testing.assert_close(found, ((weights if weighted else 1) * rows).mean(), rtol=1e-9, atol=1e-9)
    leaves = (weights * rows + CONFIG.priority_eps) ** CONFIG.priority_exponent
    torch.testing.assert_close(method.priorities.leaves[slots].double(), leaves, rtol=1e-5, atol=1e-7)


def test_buffer_is_constant_and_counts_classes(method: Ssdkd, runtime: Runtime) -> None:
    """|B| stays 25 while 50 images pass; the shares of Eq. 3 are those of what it holds."""
    pool = method.pool
    rounds = Rounds(method, runtime)
    for epoch in range(5):
        batch = rounds.round(epoch)
        method.priorities.update(pool.add(batch.images, batch.labels), batch.initial_priorities)
    assert len(pool) == 25
    assert pool.class_counts.tolist() == pool.labels.bincount(minlength=4).tolist()
    begin_round(method, 5)
    torch.testing.assert_close(method.class_shares, pool.labels.bincount(minlength=4) / 25, check_dtype=False)
    assert int((method.priorities.leaves > 0).sum()) == 25


def test_a_student_epoch_draws_by_priority_and_writes_back(
    method: Ssdkd, setup: Setup, student: nn.Module, runtime: Runtime
) -> None:
    pool = Pool(25, (3, 16, 16), runtime=runtime, num_classes=4, policy="ring")
    pools = MultiPool({ImageSize.of(16): pool})
    trainer = StudentTrainer(student, method=method, teacher=setup.teacher, pool=pools, runtime=runtime)
    tree = trainer.priorities[ImageSize.of(16)]
    pool.add(torch.rand(20, 3, 16, 16), torch.zeros(20).long())
    tree.update(torch.arange(20), torch.where(torch.arange(20) < 3, 1e6, 1e-9))
    before = tree.leaves.clone()
    trainer.epoch(3, CONFIG.steps_per_epoch, ignore)
    changed = (tree.leaves != before).nonzero().flatten().tolist()
    assert changed == [0, 1, 2]  # the rest was a millionth as likely


@pytest.mark.parametrize("part", ["priority_sampling", "diversity", "focus"])
def test_ablations_leave_one_part_out(make_method: Callable[..., Any], runtime: Runtime, part: str) -> None:
    method = make_method(Ssdkd, replace(CONFIG, **{part: 0.0 if part == "focus" else False}))
    pool = open_pool(method, runtime)
    pool.add(torch.rand(5, 3, 16, 16), torch.tensor([0, 0, 1, 2, 3]))
    begin_round(method, 0)
    (plan,) = method.pools()
    assert (plan.opened(pool) is None) == (part == "priority_sampling")
    assert (method.class_shares.sum() == 0) == (part == "diversity")
    batch = PoolBatch(torch.empty(3, 3, 16, 16), torch.zeros(3).long(), torch.arange(3), {})
    teacher, student = torch.randn(2, 3, 4, dtype=torch.float64)
    if part == "priority_sampling":
        found = method.student_loss(batch, NetOutput(teacher), NetOutput(student))["kd"]
        torch.testing.assert_close(found, kl_rows(student, teacher, 20.0).mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [None, 1.0, 3.0])
def test_temperature_of_priorities(
    make_method: Callable[..., Any], runtime: Runtime, temperature: float | None
) -> None:
    """Eq. 4 with the softmax of the logits, T = 1, or another; the student's loss keeps its own temperature."""
    method = make_method(Ssdkd, replace(CONFIG, priority_temperature=temperature))
    pool = open_pool(method, runtime)
    pool.add(torch.rand(5, 3, 16, 16), torch.tensor([0, 0, 1, 2, 3]))
    slots, weights = torch.tensor([4, 1, 2]), torch.tensor([0.5, 2.0, 1.0])
    batch = PoolBatch(torch.empty(3, 3, 16, 16), torch.zeros(3).long(), slots, {}, weights)
    teacher, student = torch.randn(2, 3, 4, dtype=torch.float64)
    found = method.student_loss(batch, NetOutput(teacher), NetOutput(student))["kd"]
    torch.testing.assert_close(found, (weights * kl_rows(student, teacher, 20.0)).mean(), rtol=1e-9, atol=1e-9)
    rows = kl_rows(student, teacher, temperature or 20.0)
    leaves = (weights.double() * rows + CONFIG.priority_eps) ** CONFIG.priority_exponent
    torch.testing.assert_close(method.priorities.leaves[slots].double(), leaves, rtol=1e-5, atol=1e-7)


def test_labels_may_be_what_the_teacher_predicts(
    make_method: Callable[..., Any], runtime: Runtime, teacher: nn.Module
) -> None:
    """y = argmax of the teacher: the label term is then minus the log of its largest probability, weighted by phi."""
    method = make_method(Ssdkd, replace(CONFIG, label_source="teacher", diversity=False, focus=0.0))
    open_pool(method, runtime)
    variant = begin_round(method, 0)
    view = torch.randn(10, 3, 16, 16, dtype=torch.float64)
    method.augment = nn.Identity()
    method.generator.forward = lambda: view
    found = method.step(**variant)[1]["ce"]
    expected = -teacher(view).log_softmax(dim=1).max(dim=1).values.mean()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("start", "same"), [("fresh", False), ("fomaml", True), ("carry", True)])
def test_generator_is_re_initialised_each_epoch(make_method: Callable[..., Any], start: str, same: bool) -> None:
    method = make_method(Ssdkd, replace(CONFIG, start=start, diversity=False))
    begin_round(method, 0)
    stem, latents = method.generator.decoder.stem.weight, method.generator.latents
    address, before, drawn = stem.data_ptr(), stem.detach().clone(), latents.detach().clone()
    begin_round(method, 1)
    assert torch.equal(stem, before) == same
    assert stem.data_ptr() == address
    assert not torch.equal(latents, drawn)


@pytest.mark.parametrize("start", ["fomaml", "carry", "fresh"])
def test_first_layers_are_drawn_anew_as_fast_does(
    make_method: Callable[..., Any], runtime: Runtime, start: Start
) -> None:
    """Once, warm-up 2 + 2 counted from 1; a fresh start's rounds are the same, bit for bit, with and without."""
    states = []
    for reset_epoch in (0, 2):
        method = make_method(Ssdkd, replace(CONFIG, start=start, reset_epoch=reset_epoch))
        open_pool(method, runtime)
        torch.manual_seed(1)
        for epoch in range(6):
            begin_round(method, epoch)
            weights = method.start.weights.state_dict()
            states.append({name: value.clone() for name, value in weights.items() if "latents" not in name})
    layers = {"decoder.stem.weight", "decoder.stem.bias", "decoder.layers.norm0.weight"}
    apart = [
        {name for name, value in plain.items() if not torch.equal(value, reset[name])}
        for plain, reset in zip(states[:6], states[6:], strict=True)
    ]
    assert apart == [set()] * 3 + [set() if start == "fresh" else layers] * 3


def test_frozen_networks_get_no_weight_gradients(method: Ssdkd, setup: Setup, runtime: Runtime) -> None:
    Rounds(method, runtime).round(1)
    assert all(p.grad is None for p in [*setup.teacher.net.parameters(), *setup.student.parameters()])
    assert all(p.grad is not None for p in method.generator.parameters())


def test_method_state_is_its_own(method: Ssdkd) -> None:
    assert {name.split(".")[0] for name in method.state_dict()} == {"generator", "statistics"}


WEIGHTS = {"wrn40_2": (1.1, 0.4), "resnet34": (1.33, 0.5), "vgg11": (1.0, 0.5)}


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize(("suffix", "buffer", "steps"), [("", 5000, 2), ("-full", 50_000, 5)])
def test_presets(dataset: str, suffix: str, buffer: int, steps: int) -> None:
    """Table 1 and 2: Fast's settings, a buffer of a tenth and of all of CIFAR; the student sees it twice an epoch."""
    name = f"{dataset}{suffix}"
    about = tomllib.loads(presets("ssdkd")[name].read_text())["preset"]
    for entry in [{"teacher": "wrn40_2"}, *about["published"]]:
        recipe = load_config(default_config("ssdkd"), preset=name, flags=shlex.split(entry.get("flags", ""))).method
        assert (recipe.buffer_size, recipe.synthesis_steps) == (buffer, steps)
        assert (recipe.adv_weight, recipe.ce_weight) == WEIGHTS[entry["teacher"]]
        assert (recipe.epochs, recipe.warmup_epochs, recipe.synthesis_batch_size) == (220, 20, 256)
        assert recipe.student_steps == pytest.approx(2 * buffer / recipe.batch_size, rel=0.03)
        assert (recipe.start, recipe.reset_epoch) == ("fomaml", FastConfig().reset_epoch)
    assert len(about["published"]) == 4


def test_golden_trajectory(method: Ssdkd, runtime: Runtime) -> None:
    """Five rounds of four steps: without and with the adversarial term."""
    found = trajectory(method, runtime, epochs=5, terms=("ce", "bn", "adv"))
    assert found["losses"].shape == (20, 3)
    check_golden("ssdkd", found)
