"""Crops, flips and mixtures: meaning, gradient, and agreement with the pool's own kernel."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch.nn import functional as F

from dfkd_fast.augment import (
    Augment,
    CropFlip,
    batch_roll_flip,
    draw_boxes,
    draw_crop_flip,
    draw_mix,
    mixed,
    resized_crop,
    shift_flip,
)
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import ModelInfo
from dfkd_kernels import gather_augment

INFO = ModelInfo(name="cnn", num_classes=10, image_size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


def naive(images: torch.Tensor, params: CropFlip, pad: int) -> torch.Tensor:
    """Pad, cut a window out of each sample, mirror it."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (pad,) * 4)
    out = []
    for sample, (dy, dx), flip in zip(padded, params.shifts.tolist(), params.flips.tolist(), strict=True):
        window = sample[:, pad + dy : pad + dy + height, pad + dx : pad + dx + width]
        out.append(window.flip(-1) if flip else window)
    return torch.stack(out)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shift_flip_is_a_padded_crop(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    images = torch.rand(16, 3, 8, 6, dtype=torch.float64).contiguous(memory_format=layout)
    params = draw_crop_flip(16, pad=4, flip=True, device=images.device)
    assert 0 < params.flips.sum() < 16
    moved = shift_flip(images, params)
    assert torch.equal(moved, naive(images, params, 4))
    assert moved.is_contiguous(memory_format=layout)


def test_shift_flip_gradient_is_the_inverse_move() -> None:
    torch.manual_seed(0)
    images = torch.rand(6, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    params = draw_crop_flip(6, pad=2, flip=True, device=images.device)
    weights = torch.randn(6, 2, 5, 4, dtype=torch.float64)
    (found,) = torch.autograd.grad((shift_flip(images, params) * weights).sum(), images)
    (expected,) = torch.autograd.grad((naive(images, params, 2) * weights).sum(), images)
    assert torch.equal(found, expected)
    assert torch.autograd.gradcheck(lambda x: shift_flip(x, params), images)
    assert torch.autograd.gradgradcheck(lambda x: shift_flip(x, params), images)


def test_generated_and_pooled_images_are_augmented_alike() -> None:
    """The same parameters give the same view of a generated image and of its uint8 copy in the pool."""
    torch.manual_seed(0)
    pool = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    params = draw_crop_flip(5, pad=2, flip=True, device=pool.device)
    stored = gather_augment(pool, torch.arange(5), *params[:2], INFO.mean, INFO.std, pad=2)
    generated = Augment(INFO, pad=2).normalize(shift_flip(pool.permute(0, 3, 1, 2).float() / 255, params))
    torch.testing.assert_close(generated, stored, rtol=1e-5, atol=1e-6)


def test_draws_cover_the_range_and_follow_the_seed() -> None:
    torch.manual_seed(0)
    first = draw_crop_flip(500, pad=2, flip=True, device=torch.device("cpu"))
    assert set(first.shifts.flatten().tolist()) == {-2, -1, 0, 1, 2}
    assert 200 < first.flips.sum() < 300
    torch.manual_seed(0)
    again = draw_crop_flip(500, pad=2, flip=True, device=torch.device("cpu"))
    assert torch.equal(first.shifts, again.shifts)
    assert not draw_crop_flip(500, pad=2, flip=False, device=torch.device("cpu")).flips.any()


def test_batch_roll_flip() -> None:
    images = torch.rand(2, 3, 6, 5)
    shift = torch.tensor([2, -1])
    rolled = batch_roll_flip(images, shift, torch.tensor(False))
    assert torch.equal(rolled, torch.roll(images, (2, -1), (2, 3)))
    assert torch.equal(batch_roll_flip(images, shift, torch.tensor(True)), rolled.flip(3))


def test_boxes_are_those_of_a_random_resized_crop() -> None:
    """Inside the image, areas uniform in [scale, 1] as far as they fit, aspect ratios within [3/4, 4/3]."""
    torch.manual_seed(0)
    top, left, height, width = draw_boxes(4000, scale=0.25, device=torch.device("cpu")).unbind(1)
    for start, size in ((top, height), (left, width)):
        assert start.min() >= 0
        assert (start + size).max() <= 1 + 1e-6
    area, ratio = height * width, width / height
    assert area.min() >= 0.25 - 1e-6
    assert 0.25 <= area.quantile(0.01) < 0.27
    assert ratio.min() >= 0.75 - 1e-6
    assert ratio.max() <= 4 / 3 + 1e-6
    assert ratio.log().mean().abs() < 0.01
    assert draw_boxes(50, scale=1.0, device=torch.device("cpu")).equal(torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(50, 4))


def test_resized_crop_of_whole_pixels_is_interpolate() -> None:
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.25, 0.125, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    found = resized_crop(images, boxes)
    cut = F.interpolate(images[:1, :, 2:6, 1:7], size=(8, 8), mode="bilinear", align_corners=False)
    inner = (..., slice(2, 6), slice(1, 7))  # the cut's own edge is clamped, the crop sees what lies beyond it
    torch.testing.assert_close(found[:1][inner], cut[inner], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1], images[1], rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(lambda x: resized_crop(x, boxes), images[:, :1, :4, :4].detach().requires_grad_())
    assert resized_crop(images.bfloat16(), boxes).dtype == torch.bfloat16


def test_augment_with_a_resized_crop() -> None:
    augment = Augment(INFO, pad=4, flip=True, crop_scale=0.75)
    images = torch.full((4, 3, 8, 8), 0.5)
    torch.testing.assert_close(augment(images), augment.normalize(images))  # no zero padding comes into view
    with pytest.raises(UserError, match=r"--method.crop-scale 1.5: choose a share above 0 and up to 1"):
        Augment(INFO, crop_scale=1.5)


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "both"])
def test_a_mixture_is_what_its_papers_say(kind: Literal["cutmix", "mixup", "both"]) -> None:
    """Pixel by pixel in float64: mixup blends, CutMix pastes a box whose size follows the drawn share."""
    torch.manual_seed(0)
    images = torch.rand(40, 3, 12, 12, dtype=torch.float64)
    mix = draw_mix(kind, 40, 12, alpha=1.0, device=images.device)
    assert sorted(mix.partners.tolist()) == list(range(40))
    blends = 0
    for row, (image, partner) in enumerate(zip(mixed(images, mix), mix.partners.tolist(), strict=True)):
        own = mix.own[row, 0].double()
        expected = own * images[row] + (1 - own) * images[partner]
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-12)
        assert float(mix.shares[row]) == pytest.approx(float(own.mean()), abs=1e-6)
        if len(own.unique()) == 1 and 0 < float(own[0, 0]) < 1:
            blends += 1
            continue
        pasted = own == 0
        assert bool((pasted | (own == 1)).all())
        rows, columns = pasted.any(dim=1), pasted.any(dim=0)
        assert torch.equal(pasted, rows[:, None] & columns)  # a box
        for inside in (rows, columns):
            assert int(inside.sum()) == 0 or int(inside.nonzero().diff(dim=0).sum()) == int(inside.sum()) - 1
    assert {"cutmix": blends == 0, "mixup": blends == 40, "both": 8 < blends < 32}[kind]


def test_shares_of_a_mixture_follow_a_beta_distribution() -> None:
    """By mean and variance, 1 / (8 alpha + 4); of boxes inside the image, by their area as well."""
    torch.manual_seed(0)
    for alpha in (0.25, 1.0, 4.0):
        shares = draw_mix("mixup", 20_000, 1, alpha=alpha, device=torch.device("cpu")).shares.double()
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(shares.var()) == pytest.approx(1 / (8 * alpha + 4), rel=0.05)
    own = draw_mix("cutmix", 5_000, 32, alpha=1.0, device=torch.device("cpu")).own[:, 0]
    sides = [(own == 0).any(dim=dim).sum(dim=1).double() for dim in (1, 2)]
    inside = torch.stack([(own[:, edge] == 1).all(dim=1) & (own[:, :, edge] == 1).all(dim=1) for edge in (0, -1)])
    whole = inside.all(dim=0) & (sides[0] > 0)
    assert float((sides[0] - sides[1]).abs()[whole].max()) <= 1  # a square, up to where it starts between pixels
    # E[side of a box] = 32 E[sqrt(1 - share)] = 32 * 2/3 over all boxes; the edges cut it down to
    # 32 * (2/3 - 1/8): a box of side s, centred anywhere in the image, keeps s - s^2 / 4 of it, and E[s^2] = 1/2
    assert float(sides[0].mean()) / 32 == pytest.approx(2 / 3 - 1 / 8, abs=0.01)
    assert math.isclose(
        float(mixed(torch.ones(2, 1, 4, 4), draw_mix("both", 2, 4, alpha=1.0, device=own.device)).mean()), 1
    )
