"""Vision transformers at low resolution: windows and their chances, patch tokens, CAM, gradients, the whole network."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.device.runtime import make_runtime
from dfkd_fast.errors import UserError
from dfkd_fast.losses.cam import cam_margin
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.teacher import FrozenNet, frozen_alias
from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_fast.models.vit import TokenWindow, is_vit, see, window_chances

INFO = ModelInfo(name="vit", num_classes=5, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "distilled": {},
    "registers": {"reg_tokens": 2},
    "positions of patches only": {"no_embed_class": True, "reg_tokens": 1},
    "pooled": {"class_token": False, "global_pool": "avg"},
}


def tiny_vit(kind: str = "class token", seed: int = 0) -> nn.Module:
    """32 pixels, 8 x 8 patches of 4, two blocks, in float64 and evaluation mode."""
    ensure_importable()
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    cls = VisionTransformerDistilled if kind == "distilled" else VisionTransformer
    shape = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = cls(**shape, **KINDS[kind]).double().eval()
    nn.init.normal_(model.pos_embed)  # so that another window is another network
    nn.init.normal_(model.norm.weight) if kind != "pooled" else None
    return model


def images(size: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))


def test_chances_are_the_papers() -> None:
    """P ~ 1 / (1 + lambda (|r - 7|^2 + |c - 7|^2)), centres counted from 1; for 7 of 14 they are 4 to 11."""
    expected = {(r, c): 1 / (1 + 0.1 * (abs(r - 7) ** 2 + abs(c - 7) ** 2)) for r in range(4, 12) for c in range(4, 12)}
    total = sum(expected.values())
    found = window_chances(14, 7, 0.1)
    assert found.shape == (8, 8)
    for (r, c), chance in expected.items():
        assert math.isclose(found[r - 4, c - 4].item(), chance / total, rel_tol=1e-5)
    assert torch.equal(window_chances(14, 14, 0.1), torch.ones(1, 1))
    assert window_chances(14, 8, 0.1).argmax() == (7 - 5) * 7 + 7 - 5  # an even window's centre: its fifth of eight


def test_every_place_is_a_window_and_each_as_often_as_it_should() -> None:
    """Places that fill [0, 1) evenly: the shares of the windows are their chances."""
    window, count = TokenWindow(CPU, decay=0.5), 4000
    found: Counter[int] = Counter()
    for number in range(count):
        window.place.fill_((number + 0.5) / count)
        rows = window.indices(6, 4)
        first = int(rows[0])
        expected = [(first // 6 + i) * 6 + first % 6 + j for i in range(4) for j in range(4)]
        assert rows.tolist() == expected
        assert first // 6 <= 2
        assert first % 6 <= 2
        found[first] += 1
    chances = window_chances(6, 4, 0.5)
    for row in range(3):
        for column in range(3):
            assert abs(found[row * 6 + column] / count - chances[row, column].item()) <= 2 / count
    window.place.fill_(1.0)  # what float32 may round a share of almost 1 to
    assert window.indices(6, 4)[0] == 2 * 6 + 2


def test_a_window_is_drawn_on_the_device_and_shared() -> None:
    window = TokenWindow(CPU)
    torch.manual_seed(0)
    places = set()
    for _ in range(5):
        window.draw()
        places.add(window.place.item())
    assert len(places) == 5
    assert all(0 <= place < 1 for place in places)


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_size_is_the_network_itself(kind: str) -> None:
    model = tiny_vit(kind)
    assert is_vit(model)
    view, window = images(32), TokenWindow(CPU)
    tokens = see(model, view, window, draws=True)
    torch.testing.assert_close(tokens.logits, model(view), rtol=0, atol=1e-12)
    assert window.place == 0, "nothing is drawn where nothing is left out"
    expected = model.forward_intermediates(view, indices=1, norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(tokens.features, expected, rtol=0, atol=1e-12)
    embedding = model.forward_head(model.forward_features(view), pre_logits=True)
    torch.testing.assert_close(tokens.embedding, embedding, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_low_resolution_is_a_network_with_that_piece_of_the_embedding(kind: str) -> None:
    """Against the network rebuilt for 20 pixels whose position embedding is copied row by row."""
    from timm.layers import PatchEmbed

    model, window = tiny_vit(kind), TokenWindow(CPU)
    window.place.fill_(0.6)
    top, left = divmod(int(window.indices(8, 5)[0]), 8)
    assert (top, left) != (0, 0)
    tokens = see(model, images(20), window, draws=False)
    small = tiny_vit(kind)
    small.patch_embed = PatchEmbed(20, 4, 3, 24).double()
    small.patch_embed.load_state_dict(model.patch_embed.state_dict())
    special = model.pos_embed.shape[1] - 64
    kept = [model.pos_embed[:, index] for index in range(special)]
    for row in range(top, top + 5):
        for column in range(left, left + 5):
            kept.append(model.pos_embed[:, special + 8 * row + column])
    small.pos_embed = nn.Parameter(torch.stack(kept, dim=1))
    torch.testing.assert_close(tokens.logits, small(images(20)), rtol=0, atol=1e-12)
    assert tokens.features.shape == (3, 24, 5, 5)


@pytest.mark.parametrize("kind", ["class token", "distilled"])
def test_cam_of_patch_tokens(kind: str) -> None:
    """Patch by patch, from hooks on the final norm: max(0, 1 - token . w_label), and its gradient in the pixels."""
    model = tiny_vit(kind)
    frozen = FrozenNet(model, INFO, make_runtime(device="cpu", precision="fp64"))
    labels, window = torch.tensor([4, 0, 2]), frozen.window
    ours = images(20).requires_grad_()
    torch.manual_seed(1)
    seen = frozen(ours)
    loss = cam_margin(seen.features, frozen.class_weights, labels, 1.0)
    loss.backward()
    place = window.place.clone()

    theirs, caught = images(20).requires_grad_(), []
    model.norm.register_forward_hook(lambda _m, _i, out: caught.append(out))
    again = TokenWindow(CPU)
    again.place.copy_(place)
    see(model, theirs, again, draws=False)
    weight = model.head.weight if kind == "class token" else (model.head.weight + model.head_dist.weight) / 2
    margins = []
    for index, label in enumerate(labels.tolist()):
        for token in caught[0][index, -25:]:
            margins.append(torch.clamp(1 - sum(token[k] * weight[label, k] for k in range(24)), min=0))
    expected = sum(margins) / len(margins)
    expected.backward()
    assert math.isclose(loss.item(), expected.item(), rel_tol=1e-9)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    assert ours.grad.abs().max() > 0


def test_teacher_and_student_look_through_one_window() -> None:
    """The teacher draws, the student in training and its frozen alias follow; equal networks answer equally."""
    runtime = make_runtime(device="cpu", precision="fp64")
    model = tiny_vit()
    frozen = FrozenNet(model, INFO, runtime)
    student, twin = (FeatureExtractor(net, window=frozen.window) for net in (model, frozen_alias(model)))
    answers = []
    for _ in range(4):
        answers.append(frozen(images(16)).logits)
        torch.testing.assert_close(student(images(16)).logits, answers[-1])
        torch.testing.assert_close(twin(images(16)).logits, answers[-1])
    assert len({round(answer.sum().item(), 9) for answer in answers}) > 1, "always the same window"
    assert frozen.targets == ()
    assert frozen.norm_inputs == ()


def test_a_student_without_such_a_teacher_draws_for_itself() -> None:
    student = FeatureExtractor(tiny_vit())
    torch.manual_seed(2)
    assert len({round(student(images(16)).logits.sum().item(), 9) for _ in range(4)}) > 1


def test_gradients_reach_pixels_of_a_frozen_network_and_weights_of_a_student() -> None:
    model = tiny_vit()
    frozen = FrozenNet(model, INFO, make_runtime(device="cpu", precision="fp64"))
    view = images(16).requires_grad_()
    frozen(view).logits.square().sum().backward()
    assert view.grad.abs().amin((0, 1)).min() > 0
    assert all(not value.requires_grad for value in frozen.net.parameters())
    student = FeatureExtractor(tiny_vit(), window=frozen.window)
    out = student(images(16))
    (out.logits.square().sum() + out.pooled().square().sum()).backward()
    grads = {name: value.grad for name, value in student.model.named_parameters()}
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads.values())
    moved = grads["pos_embed"].abs().amax(2)[0]
    assert (moved > 0).sum() == 1 + 16, "the class token's position and a window of 4 x 4"
    assert out.pooled().shape == (3, 24)
    assert student.class_weights.data_ptr() == student.model.head.weight.data_ptr()


def test_mistakes_are_named() -> None:
    frozen = FrozenNet(tiny_vit("pooled"), INFO, make_runtime(device="cpu", precision="fp64"))
    for size in (30, 36, 0):
        with pytest.raises(UserError, match=rf"^--method.image-sizes {size}: vit: sees images of 4 to 32 pixels in "):
            frozen.check_size(ImageSize.of(size), "--method.image-sizes")
    frozen.check_size(ImageSize.of(28), "--method.image-sizes")
    with pytest.raises(UserError, match=r"^--teacher vit: its classifier is not one linear layer"):
        _ = frozen.class_weights
    with pytest.raises(ValueError, match=r"^maps 'blocks'"):
        frozen(images(32), maps=("blocks",))
    with pytest.raises(UserError, match=r"^--student VisionTransformer: has patch tokens and no maps"):
        FeatureExtractor(tiny_vit(), maps=("blocks",))


def test_timm_networks_of_another_size() -> None:
    """DeiT by name, with random weights: a grid for the images that are asked for."""
    shape = {"num_classes": 5, "mean": INFO.mean, "std": INFO.std}
    model, info = load_model("timm:deit_tiny_patch16_224", image_size=32, **shape)
    assert is_vit(model)
    assert info.image_size == (32, 32)
    assert model.pos_embed.shape == (1, 1 + 2 * 2, 192)
    with torch.no_grad():
        assert see(model, torch.zeros(1, 3, 16, 16), TokenWindow(CPU), draws=True).features.shape == (1, 192, 1, 1)
    assert not is_vit(load_model("cnn", image_size=16, **shape)[0])
