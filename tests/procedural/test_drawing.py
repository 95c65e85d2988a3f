"""Random pictures: range, shape and seed of every family; the noise's spectrum, the leaves' sizes; RandAugment."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.procedural.canvas import Canvas, spread
from dfkd_fast.procedural.colours import draw_colours, paint
from dfkd_fast.procedural.dead_leaves import LEAVES, _radii, fallen
from dfkd_fast.procedural.fractals import _count
from dfkd_fast.procedural.noise import power_noise
from dfkd_fast.procedural.pictures import CHUNK, FAMILIES, draw_pictures
from dfkd_fast.procedural.randaugment import check_channels, rand_augment


def canvas(count: int, channels: int, height: int, width: int, seed: int = 0) -> Canvas:
    return Canvas(count, channels, height, width, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 12, 20), (4, 21, 9)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_pictures(family: str, shape: tuple[int, int, int]) -> None:
    draw = FAMILIES[family]
    drawn = draw(canvas(24, *shape))
    assert drawn.shape == (24, *shape)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() < drawn.max() <= 1
    assert (drawn.std((1, 2, 3)) > 0.02).float().mean() > 0.8, "flat"
    assert len(drawn.flatten(1).unique(dim=0)) == 24
    assert torch.equal(drawn, draw(canvas(24, *shape)))
    assert not torch.equal(drawn, draw(canvas(24, *shape, seed=1)))


def test_pictures_are_a_function_of_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    made = [draw_pictures(CHUNK + 3, (3, 8, 12), generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(*made)
    assert made[0].shape == (CHUNK + 3, 3, 8, 12)
    assert 0 <= made[0].min() < made[0].max() <= 1
    generator = torch.Generator().manual_seed(5)
    first, second = (draw_pictures(4, (3, 8, 12), generator=generator) for _ in range(2))
    assert not torch.equal(first, second), "the generator goes on"


def test_families_can_be_chosen() -> None:
    drawn = draw_pictures(3, (5, 8, 8), generator=torch.Generator().manual_seed(0), families=("noise", "julia"))
    assert drawn.shape == (3, 5, 8, 8)


def test_a_familys_pictures_come_as_often_as_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}

    def flat(name: str) -> object:
        def draw(area: Canvas) -> Tensor:
            counts[name] = counts.get(name, 0) + area.batch
            return area.uniform(area.channels, area.height, area.width)

        return draw

    for name in list(FAMILIES):
        monkeypatch.setitem(FAMILIES, name, flat(name))
    draw_pictures(60, (1, 4, 4), generator=torch.Generator().manual_seed(0))
    assert counts == dict.fromkeys(FAMILIES, 10)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_spectrum_falls_as_a_power(exponent: float) -> None:
    """Along one axis, where a stretch of the frequencies is a factor: the slope of log amplitude over log frequency."""
    noise = power_noise(canvas(400, 1, 32, 32), 1, low=exponent, high=exponent)[:, 0].double()
    amplitude = torch.fft.rfft2(noise).abs()[:, 0, 2:13]  # behind the smallest, which are held
    slope = amplitude.log().mean(0)
    frequency = torch.arange(2, 13).double().log()
    centred = frequency - frequency.mean()
    assert (slope * centred).sum() / centred.square().sum() == pytest.approx(-exponent, abs=0.1)


def test_leaves_have_sizes_of_density_r_to_the_minus_three() -> None:
    """Then r^-2 is uniform: its mean lies in the middle of its limits, and a quarter of it in the first quarter."""
    torch.manual_seed(0)
    inverse = _radii(canvas(50, 1, 4, 4), 4000).double() ** -2
    low, high = inverse.amin(1, keepdim=True), inverse.amax(1, keepdim=True)
    place = (inverse - low) / (high - low)
    assert place.mean().item() == pytest.approx(0.5, abs=0.01)
    assert (place < 0.25).double().mean().item() == pytest.approx(0.25, abs=0.01)


def test_later_leaves_lie_on_top() -> None:
    owner = fallen(canvas(60, 1, 24, 24))
    assert owner.min() >= 0
    assert owner.max() <= LEAVES
    assert owner[owner > 0].double().mean() > 0.55 * LEAVES, "of shapes side by side it would be half"
    assert (owner == 0).double().mean() < 0.5


def test_points_are_counted_in_their_pixels() -> None:
    """Independently of how pixels are numbered; what is outside counts nowhere."""
    area = canvas(1, 1, 4, 8)
    seen = torch.zeros(1, 32)
    x, y = torch.tensor([[-1.9, 0.1, 0.1, 3.9, 9.0, 0.0]]), torch.tensor([[-1.9, 0.1, 0.2, 1.9, 0.0, -2.5]])
    _count(seen, x, y, area)
    expected = torch.zeros(4, 8)
    for across, down in zip(x[0].tolist(), y[0].tolist(), strict=True):
        column, row = math.floor(across + 4), math.floor(down + 2)  # 4 pixels are 4 wide, from the middle
        if 0 <= column < 8 and 0 <= row < 4:
            expected[row, column] += 1
    assert torch.equal(seen.view(4, 8), expected)
    assert expected.sum() == 4


def test_palettes_and_colours_stay_in_range() -> None:
    area = canvas(40, 3, 6, 6)
    assert draw_colours(area, 7).shape == (40, 7, 3)
    painted = paint(torch.linspace(0, 1, 36).view(1, 6, 6).expand(40, 6, 6), area)
    assert painted.shape == (40, 3, 6, 6)
    assert 0 <= painted.min() < painted.max() <= 1
    assert torch.equal(spread(torch.full((2, 3, 3), 7.0)), torch.zeros(2, 3, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_changes_pictures_as_the_seed_says(channels: int) -> None:
    torch.manual_seed(1)
    pictures, before = torch.rand(20, channels, 12, 12), torch.random.get_rng_state()
    changed, again = (rand_augment(pictures, operations=4, magnitude=9, seed=3) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(changed, again)
    assert changed.shape == pictures.shape
    assert 0 <= changed.min() < changed.max() <= 1
    assert not torch.equal(changed, pictures)
    other = rand_augment(pictures, operations=4, magnitude=9, seed=4)
    assert not torch.equal(changed, other)


def test_no_operations_leave_pictures_alone() -> None:
    pictures = torch.rand(3, 2, 4, 4)
    assert rand_augment(pictures, operations=0, magnitude=9, seed=0) is pictures


def test_channels_that_randaugment_cannot_change_are_refused() -> None:
    check_channels(3, "--x 4")
    with pytest.raises(UserError, match=r"^--x 4: RandAugment changes images of 1 or 3 channels, these have 2; "):
        check_channels(2, "--x 4")
