"""MUSE against a version with hooks, written from the paper's equations; its budget, its embeddings, its presets."""

from __future__ import annotations

import math
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
from toy_networks import INFO, lived_in

from dfkd_fast.catalog import presets
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.costs.flops import count_step_flops
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.muse import class_embedding
from dfkd_fast.methods.muse.class_embedding import separation
from dfkd_fast.methods.muse.method import Muse, MuseConfig, MuseS, MuseSConfig
from dfkd_fast.methods.muse.scale import MuseScale
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.teacher import FrozenNet, NetOutput, frozen_alias
from dfkd_fast.pool.pool import PoolBatch
from dfkd_fast.text.label_embeddings import CENTRES
from dfkd_fast.training.student_recipe import student_lr

SMALL = {
    "epochs": 6,
    "warmup_epochs": 2,
    "synthesis_steps": 4,
    "noise_features": 12,
    "generator_width": 16,
    "crop_padding": 2,
    "full_images": 40,
}
CONFIG = MuseSConfig(image_sizes=(12,), synthesis_batch_size=10, batch_size=10, **SMALL)
BOTH = MuseConfig(image_sizes=(12, 16), batch_shares=(3, 2), synthesis_batch_size=20, batch_size=20, **SMALL)


@pytest.fixture
def method(make_method: Callable[..., Any]) -> MuseS:
    return make_method(MuseS, CONFIG)


def scale(method: Muse, index: int = 0) -> MuseScale:
    return method.scales[index]


def pooled_inputs(model: nn.Module) -> list[Tensor]:
    """What a network's classifier reads, collected by a hook."""
    seen: list[Tensor] = []
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    linear.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    return seen


def last_map(model: nn.Module, view: Tensor) -> Tensor:
    """The toy networks' last feature map, layer by layer."""
    for conv, norm in ((model.conv1, model.bn1), (model.conv2, model.bn2), (model.conv3, model.bn3)):
        view = F.relu(F.batch_norm(conv(view), norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return view


def expected_terms(
    method: Muse, view: Tensor, networks: tuple[nn.Module, nn.Module], hooks: HookedStatistics
) -> dict[str, Tensor]:
    """Eq. 11's five terms from the equations: hooks, a loop over classes for the maps, explicit means."""
    teacher, student = networks
    part, config = scale(method), method.config
    hooks.inputs.clear()
    logits, student_logits = teacher(view), student(view)
    features = last_map(teacher, view)
    maps = torch.stack(
        [(teacher.fc.weight[label][:, None, None] * features[b]).sum(0) for b, label in enumerate(part.labels)]
    )
    side = method.embedding.side
    embedded = last_map(student, view).mean((2, 3)) @ side.weight.detach().T + side.bias.detach()
    centres = method.embedding.centres * method.embedding.scale
    distance = ((embedded - centres[part.labels]) ** 2).sum() / embedded.numel()
    return {
        "ce": F.cross_entropy(logits, part.labels),
        "bn": hooks.loss(),
        "cam": torch.clamp(config.cam_peak - maps, min=0).mean(),
        "adv": masked_adversary(student_logits, logits),
        "aed": torch.clamp(config.outer_radius - distance, min=0),
    }


def test_generator_terms_equal_the_hooked_version(
    make_method: Callable[..., Any], teacher: nn.Module, student: nn.Module
) -> None:
    """Five terms and d(term)/d(image) in float64 to 1e-9, at a lower resolution, before and after the EMA starts."""
    method = make_method(MuseS, replace(CONFIG, outer_radius=50.0, cam_peak=3.0))  # both hinges open
    part, hooks = scale(method), HookedStatistics(teacher, CONFIG.bn_momentum)
    begin_round(part, 0)
    part.augment = nn.Identity()
    for round_index in range(3):
        torch.manual_seed(round_index)
        colour = 4 * torch.randn(10, 3, 1, 1, dtype=torch.float64)  # so that some predictions agree
        view = (torch.randn(10, 3, 12, 12, dtype=torch.float64) + colour).requires_grad_()
        part.generator.forward = lambda _embeddings, view=view: view
        _, ours = part.step(adversarial=True)
        theirs = expected_terms(method, view, (teacher, student), hooks)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            (found,) = torch.autograd.grad(ours[name], view, retain_graph=True)
            (expected,) = torch.autograd.grad(theirs[name], view, retain_graph=True)
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
            assert found.abs().max() > 0, name
        part.statistics.update()
        hooks.update()


def test_student_terms_equal_equations_2_and_10(method: MuseS, setup: Setup, student: nn.Module) -> None:
    """KL at T = 20 and the bounding loss; gradients for the student and for its side map, to 1e-9."""
    labels = torch.tensor([0, 3, 1, 2, 2])
    view = torch.randn(5, 3, 12, 12, dtype=torch.float64)
    batch = PoolBatch(view, labels, torch.arange(5), {})
    teacher = setup.teacher(view, moments=False)
    trained = student.requires_grad_(True)
    terms = method.student_loss(batch, teacher, FeatureExtractor(trained)(view))
    side, embedding = method.student_head(), method.embedding
    embedded = last_map(trained, view).mean((2, 3)) @ side.weight.T + side.bias
    centres = (embedding.centres * embedding.scale)[labels]
    p, log_q = F.softmax(teacher.logits / 20, 1), F.log_softmax(trained(view) / 20, 1)
    expected = {
        "kd": 400 * (p * (p.log() - log_q)).sum(1).mean(),
        "ed": torch.clamp(((embedded - centres) ** 2).mean() - 0.015, min=0),
    }
    assert terms.keys() == expected.keys()
    learning = [*trained.parameters(), *side.parameters()]
    for name in expected:
        torch.testing.assert_close(terms[name], expected[name], rtol=1e-9, atol=1e-9)
        found = torch.autograd.grad(terms[name], learning, retain_graph=True, allow_unused=True)
        wanted = torch.autograd.grad(expected[name], learning, retain_graph=True, allow_unused=True)
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert any(grad is not None and grad.abs().max() > 0 for grad in found)


def test_side_map_is_frozen_in_synthesis(make_method: Callable[..., Any]) -> None:
    method = make_method(MuseS, replace(CONFIG, outer_radius=50.0))
    part = scale(method)
    _, terms = part.step(**begin_round(part, 4))
    sum(terms.values()).backward()
    assert terms["aed"] > 0
    assert all(p.grad is None for p in method.student_head().parameters())
    assert all(p.grad is not None for p in part.generator.parameters())


def test_terms_that_are_switched_off_are_not_computed(make_method: Callable[..., Any]) -> None:
    """The paper's ablations: without CAM, without embedding diversity."""
    method = make_method(MuseS, replace(CONFIG, cam_weight=0.0, aed_weight=0.0, ed_weight=0.0))
    part = scale(method)
    assert part.step(**begin_round(part, 4))[1].keys() == {"ce", "bn", "adv"}
    view = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    batch = PoolBatch(view, torch.tensor([0, 1]), torch.arange(2), {})
    logits = torch.randn(2, 4, dtype=torch.float64)
    assert method.student_loss(batch, NetOutput(logits), NetOutput(logits)).keys() == {"kd"}


def test_adversarial_terms_start_with_distillation(method: MuseS) -> None:
    active = []
    for epoch in range(5):
        terms = scale(method).step(**begin_round(scale(method), epoch))[1].keys()
        assert ("adv" in terms) == ("aed" in terms)
        active.append("adv" in terms)
    assert active == [False, False, True, True, True]


def test_several_sizes_have_generators_batches_and_budgets_of_their_own(make_method: Callable[..., Any]) -> None:
    method = make_method(Muse, BOTH)
    parts = method.scales
    assert [part.info.image_size for part in parts] == [(12, 12), (16, 16)]
    assert [part.config.batch_size for part in parts] == [12, 8]
    assert [part.config.synthesis_batch_size for part in parts] == [12, 8]
    assert [plan.capacity for plan in method.pools()] == [round(20 * (16 / 12) ** 2), 20]
    assert method.info.image_size == (16, 16), "the student is evaluated at full resolution"
    for part, side in zip(parts, (12, 16), strict=True):
        images, _ = part.step(**begin_round(part, 0))
        assert images.shape[2:] == (side, side)
    names = {name.rpartition("generator")[0] for name in method.state_dict() if "generator" in name}
    assert names == {"scales.0.", "scales.1."}


def test_method_state_is_its_own(method: MuseS) -> None:
    """The side map is saved once; neither teacher nor student is; text vectors are not state."""
    roots = {".".join(name.split(".")[:3]) for name in method.state_dict()}
    own = ("generator", "statistics", "class_order")
    assert {root for root in roots if root.startswith("scales")} == {f"scales.0.{name}" for name in own}
    assert {root for root in roots if not root.startswith("scales")} == {"embedding.side.weight", "embedding.side.bias"}


@pytest.mark.parametrize(
    ("preset", "images", "rounds", "steps"),
    [
        # 100 % of CIFAR's 50,000 at 28 pixels; 2 d_r student steps
        ("muse-s cifar10", [65_306], [252], 200),
        ("muse cifar100", [32_653, 25_000], [252, 250], 200),
        # 10 %: 1,000 images of full resolution at 96; 50 d_r steps
        ("muse-s imagenette", [5_444], [55], 500),
        ("muse imagewoof", [2_722, 2_000], [55, 50], 500),
        # 10 %: 100,000 images of full resolution at 112; 200 d_r steps of 200: one pass over the pool
        ("muse-s imagenet", [400_000], [2000], 2000),
        ("muse imagenet", [200_000, 153_125], [1000, 1021], 2000),
    ],
)
def test_published_budget(preset: str, images: list[int], rounds: list[int], steps: int) -> None:
    """The pixels of the data ratio's share of full-resolution images, in rounds spread over all epochs."""
    config, method = assembled(preset)
    plans = method.pools()
    assert [plan.capacity for plan in plans] == images
    made = [[plan.rounds(epoch) for epoch in range(config.method.epochs)] for plan in plans]
    assert [sum(each) for each in made] == rounds
    assert all(max(each) - min(each) <= 1 and max(each) <= config.method.rounds for each in made)
    assert method.config.steps_per_epoch == steps
    assert {plan.policy for plan in plans} == {"cap"}


def assembled(preset: str) -> tuple[Any, Muse]:
    """A published recipe, with the paper's batch sizes and budget but the toy networks and a small generator."""
    name, which = preset.split()
    config = load_config(default_config(name), preset=which)
    side = 32 if which.startswith("cifar") else 224
    return config, toy(config.method, side)


def toy(recipe: MuseSConfig, side: int) -> Muse:
    info = replace(INFO, image_size=side)
    frozen = FrozenNet(lived_in("cnn", 1).float(), info, make_runtime(device="cpu", precision="fp32"))
    small = replace(recipe, noise_features=2, generator_width=2)
    return Muse(small, Setup(frozen, frozen_alias(lived_in("cnn_s", 5).float()), info, torch.eye(4)))


def test_first_in_first_out_makes_images_for_ever(make_method: Callable[..., Any]) -> None:
    (plan,) = make_method(MuseS, replace(CONFIG, fifo=True, rounds=3)).pools()
    assert [plan.rounds(epoch) for epoch in range(6)] == [3] * 6
    assert plan.policy == "ring"


def test_generator_life_counts_epochs_that_make_images(make_method: Callable[..., Any]) -> None:
    """Few rounds spread over many epochs: a new life begins with the first round after the boundary."""
    method = make_method(MuseS, replace(CONFIG, epochs=40, generator_life=10, full_images=30, image_sizes=(16,)))
    part = scale(method)
    epochs = [epoch for epoch in range(40) if part.plan.rounds(epoch)]
    assert epochs == [0, 13, 26]
    stem, reset = part.generator.decoder.stem.weight, []
    for epoch in epochs:
        before = stem.detach().clone()
        begin_round(part, epoch)
        reset.append(not torch.equal(before, stem))
    assert reset == [True, True, True]
    object.__setattr__(part.config, "generator_life", 20)
    before = stem.detach().clone()
    begin_round(part, 13)
    assert torch.equal(before, stem), "epoch 13 is in the life that began with epoch 0"


def test_classes_come_in_turn_across_epochs(make_method: Callable[..., Any], runtime: Any) -> None:
    """Batches smaller than the classes: one permutation after another, whatever epochs the rounds fall into."""
    sparse = replace(CONFIG, synthesis_batch_size=2, epochs=20, full_images=18, image_sizes=(16,))
    part = scale(make_method(MuseS, sparse))
    rounds, seen = Rounds(part, runtime), []
    for epoch in range(20):
        for index in range(part.plan.rounds(epoch)):
            rounds.round(epoch, index)
            seen += part.labels.tolist()
    assert len(seen) == 18
    assert all(sorted(seen[start : start + 4]) == [0, 1, 2, 3] for start in range(0, 16, 4))


@pytest.mark.parametrize(("text", "expected"), [("orthogonal", 0.03), ("sbert", 0.03), ("clip", None), ("file", None)])
def test_embeddings_are_brought_to_clips_scale(setup: Setup, text: str, expected: float | None) -> None:
    """Their smallest distance becomes that of CLIP, for which the radii are given; CLIP's own stay as they are."""
    embedding = MuseS(CONFIG, setup._replace(text=text)).embedding
    found = separation(embedding.centres * embedding.scale).item()
    assert found == pytest.approx(expected or separation(setup.label_embeddings).item(), rel=1e-5)


def test_two_classes_of_one_name(setup: Setup) -> None:
    same = setup._replace(label_embeddings=torch.ones(4, 8), text="sbert")
    with pytest.raises(UserError, match=r"^--text sbert: two classes have the same embedding; choose orthogonal or "):
        MuseS(CONFIG, same)
    assert MuseS(CONFIG, same._replace(text="clip")).embedding.scale == 1


def test_class_centres_are_the_teachers_features_of_the_first_images(
    setup: Setup, teacher: nn.Module, runtime: Any
) -> None:
    torch.manual_seed(3)
    method = runtime.place(MuseS(CONFIG, setup._replace(text=CENTRES))).train()
    part, embedding = scale(method), method.embedding
    assert embedding.side.out_features == teacher.fc.in_features
    begin_round(part, 0)
    images = torch.rand(10, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        part.learn_centres(images, 0)
        seen = last_map(teacher, part.augment.normalize(images)).mean((2, 3))
    expected = torch.stack([seen[part.labels == label].mean(0) for label in range(4)])
    torch.testing.assert_close(embedding.centres, expected, rtol=1e-9, atol=1e-9)
    assert separation(embedding.centres * embedding.scale).item() == pytest.approx(0.03, rel=1e-6)
    for number in (0, 1):  # once more, and in the round behind
        part.learn_centres(torch.rand(10, 3, 12, 12, dtype=torch.float64), number)
    torch.testing.assert_close(embedding.centres, expected, rtol=1e-9, atol=1e-9)
    assert {"embedding.centres", "embedding.known", "embedding.scale"} <= set(method.state_dict())


def test_class_centres_come_class_by_class(setup: Setup, runtime: Any) -> None:
    """Batches smaller than the classes: nothing is known of a class, and no distance counts, until all were seen."""
    method = runtime.place(MuseS(CONFIG, setup._replace(text=CENTRES)))
    embedding, features = method.embedding, torch.rand(2, 64, dtype=torch.float64)
    embedding.learn(features, torch.tensor([0, 2]))
    assert embedding.scale == 0
    embedding.learn(2 * features, torch.tensor([1, 3]))
    torch.testing.assert_close(
        embedding.centres, torch.stack([features[0], 2 * features[0], features[1], 2 * features[1]])
    )
    assert embedding.scale > 0


def test_classes_are_compared_once(setup: Setup, runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with each, which grows with their square: when the last of them is known, and in no other round."""
    compared: list[Tensor] = []
    monkeypatch.setattr(
        class_embedding, "separation", lambda centres: separation(compared.append(centres.clone()) or centres)
    )
    config = replace(CONFIG, synthesis_batch_size=2)
    method = runtime.place(MuseS(config, setup._replace(text=CENTRES))).train()
    part, embedding = scale(method), method.embedding
    begin_round(part, 0)
    for number, labels in enumerate(([0, 2], [3, 1], [0, 2], [3, 1])):
        part.labels.copy_(torch.tensor(labels))
        part.learn_centres(torch.rand(2, 3, 12, 12, dtype=torch.float64), number)
        assert len(compared) == (number > 0)
    assert torch.equal(compared[0], embedding.centres)
    assert separation(embedding.centres * embedding.scale).item() == pytest.approx(0.03, rel=1e-6)


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_generators_embedding_term_on_the_teacher(
    setup: Setup, teacher: nn.Module, runtime: Any, per_sample: bool
) -> None:
    """max(0, r_o - MSE(f_T, f_y)) by hand, in the space of the class centres; value and gradient in float64."""
    config = replace(CONFIG, aed_network="teacher", outer_radius=2.0, hinge_per_sample=per_sample)
    method = runtime.place(MuseS(config, setup._replace(text=CENTRES))).train()
    part, embedding = scale(method), method.embedding
    torch.manual_seed(1)
    variant = begin_round(part, 2)
    part.learn_centres(torch.rand(10, 3, 12, 12, dtype=torch.float64), 0)
    view = torch.rand(10, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    part.augment = nn.Identity()
    part.generator.forward = lambda _embeddings: view
    _, terms = part.step(**variant)
    seen = last_map(teacher, view).mean((2, 3))
    squares = ((seen - embedding.centres[part.labels]) ** 2).mean(1) * embedding.scale**2
    wanted = (2.0 - (squares if per_sample else squares.mean())).clamp_min(0).mean()
    torch.testing.assert_close(terms["aed"], wanted, rtol=1e-9, atol=1e-9)
    assert 0 < wanted < 2
    (found,) = torch.autograd.grad(terms["aed"], view, retain_graph=True)
    (expected,) = torch.autograd.grad(wanted, view)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)
    assert found.abs().max() > 0


def test_text_vectors_are_in_another_space_than_the_teachers_features(setup: Setup) -> None:
    with pytest.raises(UserError, match=r"^--aed-network teacher: --text clip gives vectors in another space than "):
        MuseS(replace(CONFIG, aed_network="teacher"), setup._replace(text="clip")).check_run()
    with pytest.raises(UserError, match=r"^--aed-network teacher: has no effect with --aed-weight 0"):
        MuseS(replace(CONFIG, aed_network="teacher", aed_weight=0.0), setup._replace(text=CENTRES)).check_run()


def test_the_cost_of_a_step_with_the_term_on_the_teacher(setup: Setup) -> None:
    """Counted in the space of class centres, by small batches that alone would not show every class."""
    method = MuseS(replace(CONFIG, aed_network="teacher"), setup._replace(text=CENTRES))
    method.check_run()
    flops = count_step_flops(method, INFO, teacher="cnn", student="cnn_s")
    assert flops.student > 0
    assert min(flops.synthesis.values()) > 0


@pytest.mark.parametrize("epochs", [400, 100, 30])
def test_a_growing_learning_rate_follows_the_epochs(epochs: int) -> None:
    """Linear over the first tenth of all epochs, whatever their number, then a cosine to 0."""
    flags = ["--epochs", str(epochs), "--warmup-epochs", "0", "--student-ramp-share", "0.1"]
    config = load_config(default_config("muse-s"), preset="cifar10", flags=flags)
    config.check()
    ramp, peak = epochs // 10, config.method.student_lr
    rates = [student_lr(config.method, epoch) for epoch in range(epochs)]
    assert rates[:ramp] == pytest.approx([peak * (epoch + 1) / ramp for epoch in range(ramp)], rel=1e-12)
    falling = [peak * (1 + math.cos(math.pi * step / (epochs - ramp))) / 2 for step in range(epochs - ramp)]
    assert rates[ramp:] == pytest.approx(falling, rel=1e-9, abs=1e-15)
    assert scheduled(epochs, ramp=ramp) == rates


def scheduled(epochs: int, *, ramp: int) -> list[float]:
    """The same by a number of epochs."""
    flags = ["--epochs", str(epochs), "--warmup-epochs", "0", "--student-ramp-epochs", str(ramp)]
    recipe = load_config(default_config("muse-s"), preset="cifar10", flags=flags).method
    return [student_lr(recipe, epoch) for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--student-ramp-share", "1"], "--method.student-ramp-share 1.0: choose a share from 0 to below 1"),
        (
            ["--student-ramp-share", "0.1", "--student-ramp-epochs", "4"],
            "--method.student-ramp-share 0.1: give it or --method.student-ramp-epochs, not both",
        ),
        (["--student-ramp-share", "-0.1"], "--method.student-ramp-share -0.1: choose 0 or more"),
    ],
)
def test_shares_that_are_none(flags: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(default_config("muse-s"), preset="cifar10", flags=flags).check()
    assert str(caught.value) == line


def test_mistakes_are_named(setup: Setup) -> None:
    with pytest.raises(UserError, match=r"^--method.image-sizes 12 12: choose different sizes, with one of "):
        Muse(replace(BOTH, image_sizes=(12, 12)), setup)
    with pytest.raises(UserError, match=r"^--method.image-sizes 12 16: choose different sizes, with one of "):
        Muse(replace(BOTH, batch_shares=(1,)), setup)
    few = replace(CONFIG, synthesis_batch_size=2, full_images=2)
    with pytest.raises(UserError, match=r"^--text class-centre: the warm-up shows 2 of 4 classes; "):
        MuseS(few, setup._replace(text=CENTRES)).check_run()


def test_teacher_without_a_linear_classifier(setup: Setup, runtime: Any) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 4)
    )
    odd = setup._replace(teacher=FrozenNet(network.double(), replace(setup.info, name="odd"), runtime))
    with pytest.raises(UserError, match=r"^--teacher odd: its classifier is not one linear layer on pooled features"):
        MuseS(CONFIG, odd)
    assert "cam" not in scale(MuseS(replace(CONFIG, cam_weight=0.0), odd)).step(adversarial=False)[1]


@pytest.mark.parametrize("name", ["muse-s", "muse"])
@pytest.mark.parametrize("preset", ["cifar10", "cifar100", "imagenette", "imagewoof", "imagenet"])
def test_presets_hold_the_papers_values(name: str, preset: str) -> None:
    """Table 6 of the paper, and what it fixes for all experiments."""
    cells = {
        "cifar": ((28,), (28, 32), (260,), (130, 100), 40, 400),
        "imagenet": ((112,), (112, 128), (200,), (200, 150), 100, 400),
    }
    subset = ((96,), (96, 112), (100,), (50, 40), 100, 100)
    single, several, batch, batches, steps, epochs = cells.get(preset.rstrip("01"), subset)
    config = load_config(default_config(name), preset=preset)
    recipe = config.method
    assert recipe.image_sizes == (single if name == "muse-s" else several)
    shares = [round(recipe.batch_size * share / sum(recipe.batch_shares)) for share in recipe.batch_shares]
    assert tuple(shares) == (batch if name == "muse-s" else batches)
    assert recipe.synthesis_batch_size == recipe.batch_size
    assert (recipe.synthesis_steps, recipe.epochs, recipe.rounds) == (steps, epochs, 20)
    assert recipe.warmup_epochs == epochs // 10
    weights = (
        recipe.ce_weight,
        recipe.bn_weight,
        recipe.adv_weight,
        recipe.cam_weight,
        recipe.ed_weight,
        recipe.aed_weight,
    )
    assert weights == (0.5, 10.0, 1.3, 0.1, 10.0, 5.0)
    assert (recipe.inner_radius, recipe.outer_radius, recipe.cam_peak, recipe.cam_sigma) == (0.015, 0.03, 1.0, None)
    assert (recipe.generator_lr, recipe.student_optimizer, recipe.student_lr) == (4e-3, "adamw", 1e-3)
    assert config.text == "clip"
    about = tomllib.loads(presets(name)[preset].read_text())["preset"]
    assert 20 < about["top1"] < 95
    assert about["hours"] > 0


def test_golden_trajectory(method: MuseS, runtime: Any) -> None:
    """20 steps of MUSE-S in five epochs, with every term, through warm-up and adversarial rounds."""
    terms = ("ce", "bn", "cam", "adv", "aed")
    found = trajectory(scale(method), runtime, epochs=5, terms=terms)
    assert found["losses"].shape == (20, 5)
    check_golden("muse", found | {"pool": scale(method).statistics.pool.clone()})
