"""Every image of a grid stands in its class's row, pixel for pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd_fast.reporting.visualize import class_grid, save_grid

GAP = 2


def tile(grid: Image.Image, row: int, column: int, side: int, below: int = 0) -> np.ndarray:
    top, left = GAP + row * (side + GAP + below), GAP + column * (side + GAP)
    return np.asarray(grid)[top : top + side, left : left + side]


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8)


LABELS = torch.tensor([2, 0, 2, 2, 0])


def test_rows_are_classes_and_pixels_are_repeated(images: torch.Tensor) -> None:
    grid = class_grid(images, LABELS, 3, per_class=2, scale=3)
    assert grid.size == (2 * 14 + GAP, 3 * 14 + GAP)
    for row, column, index in ((0, 0, 1), (0, 1, 4), (2, 0, 0), (2, 1, 2)):
        expected = np.kron(images[index].numpy(), np.ones((3, 3, 1), dtype=np.uint8))
        assert np.array_equal(tile(grid, row, column, 12), expected)
    assert (tile(grid, 1, 0, 12) == 235).all()  # no image of class 1
    assert (np.asarray(grid)[:GAP] == 255).all()


def test_floats_look_like_the_bytes_they_are_stored_as(images: torch.Tensor) -> None:
    floats = images.permute(0, 3, 1, 2).double() / 255
    stored, drawn = (class_grid(form, LABELS, 3, per_class=3) for form in (images, floats))
    assert np.array_equal(np.asarray(stored), np.asarray(drawn))
    beyond = class_grid(floats * 3 - 1, LABELS, 3, per_class=3, scale=1)
    assert tile(beyond, 0, 0, 4).max() == 255  # clamped, not wrapped around


def test_one_channel_is_grey(images: torch.Tensor) -> None:
    grid = class_grid(images[..., :1], LABELS, 3, scale=1)
    assert (tile(grid, 0, 0, 4) == images[1, :, :, :1].numpy()).all()


def test_small_images_are_enlarged_and_large_ones_are_not() -> None:
    for side, shown in ((8, 64), (32, 64), (96, 96)):
        grid = class_grid(torch.zeros(1, side, side, 3, dtype=torch.uint8), torch.tensor([0]), 1, per_class=1)
        assert grid.size == (shown + 2 * GAP, shown + 2 * GAP)


def test_captions_stand_below_their_images(images: torch.Tensor) -> None:
    plain = np.asarray(class_grid(images, LABELS, 3, per_class=2, scale=8))
    captioned = class_grid(images, LABELS, 3, per_class=2, scale=8, captions=torch.linspace(0, 1, 5))
    assert captioned.size[1] == plain.shape[0] + 3 * 12
    assert np.array_equal(tile(captioned, 2, 1, 32, below=12), np.kron(images[2].numpy(), np.ones((8, 8, 1), np.uint8)))
    below = np.asarray(captioned)[GAP + 32 : GAP + 32 + 12, GAP : GAP + 32]
    assert below.min() < 128  # something is written
    empty = np.asarray(captioned)[GAP + 46 + 32 : GAP + 46 + 32 + 12]
    assert (empty == 255).all()  # nothing below class 1, which has no image


def test_many_classes_are_cut() -> None:
    one = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    assert class_grid(one, torch.tensor([0]), 1000, per_class=1, scale=1).size == (4 + 2 * GAP, 100 * 6 + GAP)


def test_saved_file_is_the_grid(images: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "images" / "epoch-0001.png"
    save_grid(path, images, LABELS, num_classes=3, per_class=2)
    with Image.open(path) as saved:
        assert saved.format == "PNG"
        assert np.array_equal(np.asarray(saved), np.asarray(class_grid(images, LABELS, 3, per_class=2)))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
