"""CPNet's losses, views and nodes against independent versions; its schedule, its refusals, its golden trajectory."""

from __future__ import annotations

import math
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
from toy_networks import INFO

from dfkd_fast.catalog import presets
from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Setup
from dfkd_fast.methods.cpnet import views
from dfkd_fast.methods.cpnet.generator import CoupledGenerator
from dfkd_fast.methods.cpnet.losses import FeatureAlignment, bounded_inverse, inversion, mixture_ce, restored
from dfkd_fast.methods.cpnet.method import Cpnet, CpnetConfig
from dfkd_fast.methods.cpnet.nodes import TeacherNode, find_nodes
from dfkd_fast.methods.cpnet.views import ColourJitter, cutmix
from dfkd_fast.models.factory import load_model
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_fast.training.judge import check_teacher

CONFIG = CpnetConfig(
    epochs=6,
    warmup_epochs=2,
    warmup_rounds=3,
    synthesis_batch_size=10,
    synthesis_steps=4,
    noise_features=12,
    crop_padding=2,
)
STILL = {"generator_lr": 0.0, "synthesis_steps": 1}
"""rounds that learn nothing: what they change, they have drawn anew"""


@pytest.fixture
def method(make_method: Callable[..., Any]) -> Cpnet:
    return make_method(Cpnet, CONFIG)


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """Values and gradients to 1e-9, and gradients that are not 0."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for value in inputs:
        (found,) = torch.autograd.grad(ours, value, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs, value, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert found.abs().max() > 0


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


class TestLosses:
    def test_restored_maps_have_the_running_statistics(self) -> None:
        """By hand, pixel by pixel of a channel; of the batch's own statistics they become the wanted ones."""
        maps, mean, var = torch.randn(5, 3, 4, 4).double(), torch.randn(3).double(), torch.rand(3).double() + 0.1
        maps.requires_grad_()
        batch = maps.detach().mean((0, 2, 3)), maps.detach().var((0, 2, 3), unbiased=False)
        for given in (batch, (batch[0] + 1, 2 * batch[1])):
            found = restored(maps, given, (mean, var))
            assert not found.requires_grad
            for channel in range(3):
                standard = (maps[:, channel] - given[0][channel]) / math.sqrt(given[1][channel] + 1e-5)
                expected = (standard * var[channel].sqrt() + mean[channel]).detach()
                torch.testing.assert_close(found[:, channel], expected, rtol=1e-9, atol=1e-9)
        own = restored(maps, batch, (mean, var))
        torch.testing.assert_close(own.mean((0, 2, 3)), mean)
        torch.testing.assert_close(own.var((0, 2, 3), unbiased=False), var, rtol=1e-4, atol=0)

    def test_a_dead_channel_is_no_nan(self) -> None:
        maps = torch.zeros(5, 3, 4, 4)
        found = restored(maps, (torch.zeros(3), torch.zeros(3)), (torch.ones(3), torch.ones(3)))
        assert torch.equal(found, torch.ones_like(maps))

    def test_inversion(self) -> None:
        made = [random(5, 3, 4, 4), random(5, 2, 8, 8)]
        wanted = [value.detach() + torch.randn_like(value) for value in made]
        expected = sum(((own - other) ** 2).sum() / own.numel() for own, other in zip(made, wanted, strict=True))
        same(inversion(made, wanted), expected, *made)
        with pytest.raises(ValueError, match="zip"):
            inversion(made, wanted[:1])

    def test_mixture_ce(self) -> None:
        logits, shares = random(6, 4), torch.rand(6).double()
        labels, others = torch.arange(6) % 4, torch.arange(6).flip(0) % 4
        target = (1 - shares)[:, None] * F.one_hot(labels, 4) + shares[:, None] * F.one_hot(others, 4)
        expected = -(target * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1).mean()
        same(mixture_ce(logits, labels, others, shares), expected, logits)

    @pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
    def test_bounded_inverse(self, shape: tuple[int, int]) -> None:
        """Without small singular values the pseudo-inverse; below the bound the direction is weakened."""
        torch.manual_seed(1)
        weight = torch.randn(*shape).double()
        torch.testing.assert_close(bounded_inverse(weight, 1e-12).T, torch.linalg.pinv(weight))
        values, left = torch.linalg.eigh(weight @ weight.T)  # singular values squared; 0 beside the rank
        kept = values > 1e-9
        values, left = values[kept].sqrt(), left[:, kept]
        bound = float(values.median()) + 1e-3
        expected = left @ torch.diag(1 / (values * values.clamp(min=bound))) @ left.T @ weight
        torch.testing.assert_close(bounded_inverse(weight, bound), expected)

    @pytest.mark.parametrize("bias", [True, False])
    def test_alignment(self, bias: bool) -> None:
        """The formula row by row, with a singular value below the bound."""
        torch.manual_seed(2)
        classifier = nn.Linear(9, 4, bias=bias).double()
        with torch.no_grad():
            classifier.weight.mul_(torch.tensor([1.0, 1.0, 1.0, 0.01])[:, None])
        assert torch.linalg.svdvals(classifier.weight).min() < 0.1
        features, labels = random(6, 9), torch.tensor([0, 1, 2, 3, 3, 1])
        found = FeatureAlignment(classifier, smoothing=0.1, least=0.1)(features, labels)
        left, values, right = torch.linalg.svd(classifier.weight.detach().T)  # as the paper has it, of (D, K)
        inverse = right.T @ F.pad(torch.diag(1 / values.clamp(min=0.1)), (0, 5)) @ left.T
        delta, shift = math.log(0.9 * 3 / 0.1), classifier.bias.detach() if bias else torch.zeros(4).double()
        terms = []
        for row, label in zip(features, labels.tolist(), strict=True):
            y = torch.zeros(4).double()
            y[label] = 1
            rest, along = row - (delta * y - shift) @ inverse, torch.ones(4).double() @ inverse
            terms.append((rest @ along).abs() / (rest.norm() * along.norm()))
        same(found, torch.stack(terms).mean(), features)

    def test_alignment_of_features_that_give_the_smoothed_label(self) -> None:
        """They are their class's anchor: whatever is left beside it must not raise all logits alike."""
        torch.manual_seed(3)
        classifier = nn.Linear(9, 4).double()
        align = FeatureAlignment(classifier, smoothing=0.1, least=1e-9)
        smoothed = classifier(align.anchors).softmax(1)
        torch.testing.assert_close(smoothed, torch.full((4, 4), 0.1 / 3).double().fill_diagonal_(0.9))
        assert align(align.anchors + align.direction, torch.arange(4)).item() == pytest.approx(1)
        beside = torch.linalg.svd(classifier.weight)[2][-1].detach()  # changes no logit
        assert align(align.anchors + beside, torch.arange(4)).item() == pytest.approx(0, abs=1e-9)


class TestViews:
    def test_cutmix_pastes_rectangles_of_partners(self) -> None:
        torch.manual_seed(0)
        images = random(40, 3, 12, 16)
        mixed, partners, shares = cutmix(images, 0.5)
        assert sorted(partners.tolist()) == list(range(40))
        for row in range(40):
            own = (mixed[row] == images[row]).all(0)
            other = (mixed[row] == images[partners[row]]).all(0)
            assert (own | other).all()
            if partners[row] == row:
                continue
            inside = (~own).nonzero()
            assert shares[row] == pytest.approx(len(inside) / (12 * 16))
            if len(inside):
                height, width = (inside.max(0).values - inside.min(0).values + 1).tolist()
                assert len(inside) == height * width
                assert abs(height / 12 - width / 16) < 1 / 12
        assert 0.3 < (shares > 0).double().mean() < 0.7
        mixed.sum().backward()  # a permutation: each pixel is shown as often as rectangles let it be
        assert images.grad is not None
        assert images.grad.sum() == pytest.approx(mixed.numel())

    @pytest.mark.parametrize("probability", [0.0, 1.0])
    def test_cutmix_for_none_and_for_all(self, probability: float) -> None:
        torch.manual_seed(0)
        images = torch.rand(500, 1, 32, 32)
        mixed, _, shares = cutmix(images, probability)
        assert torch.equal(mixed, images) == (probability == 0)
        assert shares.mean().item() == pytest.approx(0.5 * probability, abs=0.05)  # uniform, cut to whole pixels

    def test_colours_as_torchvision_changes_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Brightness, contrast and saturation one after the other, hue as it is; gradients are the affine map's."""
        ensure_importable()
        from torchvision.transforms.v2 import functional as vision

        torch.manual_seed(1)
        images = (0.3 + 0.4 * torch.rand(8, 3, 6, 6)).double().requires_grad_()  # nothing is cut off on the way
        jitter = ColourJitter(3, strength=0.1, probability=1.0)
        monkeypatch.setattr(views, "_turned", lambda angle, _: torch.eye(3).double().expand(len(angle), 3, 3))
        torch.manual_seed(2)
        found = jitter(images)
        torch.manual_seed(2)
        factors = 1 + 0.1 * (2 * torch.rand(5, 8, dtype=torch.float64) - 1)
        rows = []
        for row, image in enumerate(images):
            brightness, contrast, saturation = (float(value) for value in factors[:3, row])
            rows.append(image * brightness)
            luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
            rows[-1] = contrast * rows[-1] + (1 - contrast) * (rows[-1] * luma).sum(0).mean()
            rows[-1] = saturation * rows[-1] + (1 - saturation) * (rows[-1] * luma).sum(0)
            by_vision = vision.adjust_contrast(vision.adjust_brightness(image.detach(), brightness), contrast)
            by_vision = vision.adjust_saturation(by_vision, saturation)
            torch.testing.assert_close(rows[-1].detach(), by_vision, rtol=0, atol=1e-3)  # its luma has four digits
        weights = torch.randn_like(found)
        torch.testing.assert_close(found, torch.stack(rows), rtol=1e-9, atol=1e-9)
        same((found * weights).sum(), (torch.stack(rows) * weights).sum(), images)

    def test_hue_turns_around_grey(self) -> None:
        """A third of a circle makes green of red; grey stays, and so does the sum of the channels."""
        jitter = ColourJitter(3, strength=0.1, probability=1.0)
        turned = views._turned(torch.tensor([2 * math.pi / 3, 0.3]).double(), jitter.axis)
        torch.testing.assert_close(turned[0] @ torch.tensor([1.0, 0, 0]).double(), torch.tensor([0.0, 1, 0]).double())
        torch.testing.assert_close(turned.sum(2), torch.ones(2, 3).double())
        torch.testing.assert_close(turned @ turned.mT, torch.eye(3).double().expand(2, 3, 3))

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_jitter_for_some_images(self, channels: int) -> None:
        torch.manual_seed(0)
        images = torch.rand(200, channels, 5, 5)
        jitter = ColourJitter(channels, strength=0.1, probability=0.4)
        found = jitter(images)
        assert found.shape == images.shape
        assert 0 <= found.min() < found.max() <= 1
        moved = (found - images).abs().amax((1, 2, 3)) > 1e-5
        assert 0.3 < moved.double().mean() < 0.5
        assert torch.equal(ColourJitter(channels, strength=0.1, probability=0.0)(images), images) or channels == 3


NODES = {
    "wrn40_2": "bn1 block3.layer.5.bn1 block2.layer.5.bn1 block1.layer.5.bn1",
    "resnet18": "layer4.1.bn2 layer3.1.bn2 layer2.1.bn2 layer1.1.bn2",
    "resnet20": "layer3.2.bn2 layer2.2.bn2 layer1.2.bn2",
    "resnet8": "layer3.0.bn2 layer2.0.bn2 layer1.0.bn2",
    "vgg11": "block4.4 block2.4 block1.1 block0.1",
    "cnn": "bn3 bn2 bn1",
}


class TestNodes:
    @pytest.mark.parametrize("name", NODES)
    def test_found_from_the_teacher(self, name: str, runtime: Runtime) -> None:
        """And each is the input of that layer: channels, size, statistics."""
        model, info = load_model(name, num_classes=10, image_size=32, mean=INFO.mean, std=INFO.std)
        teacher = FrozenNet(model.double().eval(), info, runtime)
        nodes = find_nodes(teacher)
        assert [node.name for node in nodes] == NODES[name].split()
        assert [node.size for node in nodes] == sorted(node.size for node in nodes)
        seen = teacher(torch.rand(1, 3, 32, 32).double(), maps=[node.map_name for node in nodes])
        for node in nodes:
            layer = model.get_submodule(node.name)
            assert (node.channels, torch.equal(teacher.targets[node.place][1], layer.running_var.float())) == (
                layer.num_features,
                True,
            )
            assert seen.maps[node.map_name].shape == (1, node.channels, *node.size)

    def test_named_by_the_user(self, setup: Setup) -> None:
        assert [node.name for node in find_nodes(setup.teacher, ["bn1", "bn3", "bn1"])] == ["bn3", "bn1"]
        with pytest.raises(UserError, match=r"^--method\.nodes bn4: no BatchNorm layer .*; choose from bn1, bn2, bn3$"):
            find_nodes(setup.teacher, ["bn1", "bn4"])

    def test_a_teacher_without(self, runtime: Runtime) -> None:
        plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        with pytest.raises(
            UserError, match=r"^--teacher cnn: has no BatchNorm layers, .*; choose a teacher with Batch"
        ):
            find_nodes(FrozenNet(plain.double().eval(), INFO, runtime))

    def test_the_run_says_which(self, method: Cpnet, make_method: Any, capsys: pytest.CaptureFixture[str]) -> None:
        method.check_run()
        make_method(Cpnet, replace(CONFIG, nodes=("bn2",))).check_run()
        chosen, named = capsys.readouterr().out.splitlines()
        assert chosen == (
            "nodes of cnn, chosen from its layers (--method.nodes): bn3 (64 x 4 x 4), bn2 (32 x 8 x 8), "
            "bn1 (16 x 16 x 16)"
        )
        assert named == "nodes: bn2 (32 x 8 x 8)"


@pytest.mark.parametrize("sizes", [(4, 8, 16), (4, 4), (3, 9, 16), (1, 7), ((3, 4), (6, 8), (12, 9))])
def test_stages_have_the_nodes_shapes(sizes: tuple[Size, ...]) -> None:
    """Doubled maps, equal ones, and any others; images of the teacher's size at the end."""
    nodes = [TeacherNode(f"bn{place}", place, 5 + place, ImageSize.of(size)) for place, size in enumerate(sizes)]
    generator = CoupledGenerator(nodes, INFO, embedding_dim=8, batch_size=6, noise_features=7)
    images, made = generator(torch.randn(6, 8))
    assert images.shape == (6, 3, 16, 16)
    assert [value.shape[1:] for value in made] == [(node.channels, *node.size) for node in nodes]
    images.sum().backward()
    assert all(value.grad is not None for value in generator.parameters())
    before = {name: value.detach().clone() for name, value in generator.named_parameters()}
    places = [value.data_ptr() for value in generator.parameters()]
    generator.reset_parameters()
    assert places == [value.data_ptr() for value in generator.parameters()]
    drawn = {name for name, value in generator.named_parameters() if not torch.equal(value, before[name])}
    assert drawn == {name for name in before if not ("norm" in name or name == "noise.bias")}


def test_terms_and_gradients_equal_the_hooked_version(method: Cpnet, teacher: nn.Module, student: nn.Module) -> None:
    """Four terms of an image that is given, before the first update of the running averages and after each of two."""
    hooks = HookedStatistics(teacher, CONFIG.bn_momentum)
    method.augment, method.jitter = nn.Identity(), nn.Identity()
    method.config = replace(CONFIG, cutmix_probability=0.0)
    begin_round(method, 0)
    for round_index in range(3):
        torch.manual_seed(round_index)
        colour = 2 * torch.randn(10, 3, 1, 1, dtype=torch.float64)  # so that predictions differ, and some agree
        view = (torch.randn(10, 3, 16, 16, dtype=torch.float64) + colour).requires_grad_()
        made = [random(10, node.channels, *node.size) for node in method.nodes]
        method.generator.forward = lambda _embeddings, view=view, made=made: (view, made)
        _, ours = method.step(adversarial=True)
        hooks.inputs.clear()
        logits = teacher(view)
        theirs = {
            "ce": F.cross_entropy(logits, method.labels),
            "bn": hooks.loss(),
            "adv": masked_adversary(student(view), logits),
        }
        assert ours.keys() == {*theirs, "inversion", "align"}
        for name, value in theirs.items():
            same(ours[name], value, view)
        same(ours["inversion"], hooked_inversion(hooks, made), *made)
        assert torch.autograd.grad(ours["inversion"], view, allow_unused=True, retain_graph=True)[0] is None
        method.statistics.update()
        hooks.update()


def hooked_inversion(hooks: HookedStatistics, made: list[Tensor]) -> Tensor:
    """The nodes are all three layers, the deepest first."""
    total = torch.zeros(()).double()
    for place, own in zip((2, 1, 0), made, strict=True):
        (mean, var), layer = hooks.statistics()[place], hooks.layers[place]
        if hooks.pool is not None:
            mean, var = (0.1 * now + 0.9 * old for now, old in zip((mean, var), hooks.pool[place], strict=True))
        shape = (1, -1, 1, 1)
        wanted = (hooks.inputs[place] - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        wanted = wanted * layer.running_var.view(shape).sqrt() + layer.running_mean.view(shape)
        total = total + ((own - wanted.detach()) ** 2).mean()
    return total


def test_method_state_is_its_own(method: Cpnet) -> None:
    assert {name.split(".")[0] for name in method.state_dict()} == {"generator", "statistics"}
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"generator"}


def test_generator_life_and_noise(make_method: Callable[..., Any], runtime: Any) -> None:
    """The whole generator where epoch or epoch - warm-up is a multiple of its life, noisy layers in every round."""
    method = make_method(Cpnet, replace(CONFIG, generator_life=5, **STILL))
    rounds, stem, noise = Rounds(method, runtime), method.generator.stem.weight, method.generator.noise.weight
    reset = []
    for epoch in range(12):
        for index in range(2):
            before = stem.detach().clone(), noise.detach().clone()
            rounds.round(epoch, index)
            reset += [] if torch.equal(before[0], stem) else [(epoch, index)]
            assert not torch.equal(before[1], noise)
    assert reset == [(epoch, 0) for epoch in range(12) if epoch % 5 == 0 or (epoch - 2) % 5 == 0]


def test_distillation_brings_the_adversarial_terms(method: Cpnet) -> None:
    found = [set(method.step(**begin_round(method, epoch))[1]) for epoch in range(4)]
    first = {"ce", "bn", "inversion"}
    assert found == [first, first, first | {"adv", "align"}, first | {"adv", "align"}]
    (plan,) = method.pools()
    assert plan.capacity == (2 * 3 + 4 * 2) * 10


def test_without_alignment_any_classifier_will_do(setup: Setup, runtime: Runtime) -> None:
    model, _ = load_model("cnn", num_classes=4, image_size=16, mean=INFO.mean, std=INFO.std)
    model.fc = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    setup = setup._replace(teacher=FrozenNet(model.double().eval(), INFO, runtime))
    with pytest.raises(UserError, match=r"^--teacher cnn: its classifier is not one linear layer"):
        Cpnet(CONFIG, setup)
    method = runtime.place(Cpnet(replace(CONFIG, align_weight=0.0), setup))
    assert "align" not in method.step(adversarial=True)[1]


def test_bn_weight_0_does_not_do_without_batchnorm() -> None:
    """The stages need the layers, whatever the term weighs."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    config = load_config(default_config("cpnet"), preset="digits", flags=["--bn-weight", "0"])
    message = r"^--teacher resnet8: cpnet matches BatchNorm statistics and this network has none; choose a teacher with"
    with pytest.raises(UserError, match=message):
        check_teacher(plain, INFO, Cpnet, config, None)


def test_the_presets_are_the_released_scripts() -> None:
    for name, steps in {"cifar10": 30, "cifar100": 40}.items():
        recipe = load_config(default_config("cpnet"), preset=name).method
        assert recipe == CpnetConfig(synthesis_steps=steps)
    sizes = (recipe.batch_size, recipe.synthesis_batch_size, recipe.rounds, recipe.warmup_rounds, recipe.student_steps)
    assert sizes == (512, 400, 2, 10, 400)
    weights = (recipe.ce_weight, recipe.bn_weight, recipe.adv_weight, recipe.align_weight, recipe.inversion_weight)
    assert weights == (0.5, 10, 1.33, 1.33, 1)
    assert (recipe.generator_lr, recipe.generator_life, recipe.bn_momentum, recipe.student_lr) == (4e-3, 10, 0.9, 0.2)
    recipe = load_config(default_config("cpnet"), preset="tiny-imagenet").method
    sizes = (recipe.batch_size, recipe.synthesis_batch_size, recipe.rounds, recipe.warmup_rounds, recipe.student_steps)
    assert sizes == (256, 200, 4, 20, 1000)
    assert recipe.synthesis_steps == 60
    assert set(presets("cpnet")) == {"cifar10", "cifar100", "tiny-imagenet", "digits", "digits-quick"}


def test_golden_trajectory(method: Cpnet, runtime: Any) -> None:
    """20 steps: 5 rounds of 4, one of them in each of epochs 0 to 4."""
    found = trajectory(method, runtime, epochs=5, terms=("ce", "bn", "inversion", "adv", "align"))
    assert found["losses"].shape == (20, 5)
    check_golden("cpnet", found | {"pool": method.statistics.pool.clone()})
