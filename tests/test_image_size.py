"""Height and width as one value: what is made, cut, drawn, stored and said of images that are not square."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dfkd_fast.augment import draw_boxes, draw_mix, random_resized_crop
from dfkd_fast.cli.main import main
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.record import config_hash
from dfkd_fast.config.sources import default_config, load_config
from dfkd_fast.data.arrays import resized
from dfkd_fast.data.files import fitted, middle_part
from dfkd_fast.errors import UserError
from dfkd_fast.generators.dcgan import DcganDecoder
from dfkd_fast.generators.decoder import make_decoder
from dfkd_fast.generators.latent import LatentGenerator
from dfkd_fast.generators.printed_decoder import PrintedDecoder
from dfkd_fast.methods.hidfd.biggan import BigGenerator
from dfkd_fast.methods.muse.budget import data_ratio_capacity, scaled
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.shared_classifier import SharedForm, pooled_to
from dfkd_fast.models.vit import TokenWindow, window_chances
from dfkd_fast.models.weights.header import HEADER, read_header
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.reporting.visualize import class_grid
from dfkd_fast.training.judge import natural_noise

INFO = ModelInfo(name="n", num_classes=2, image_size=ImageSize(96, 64), mean=(0.5,), std=(0.25,), in_chans=1)


def test_squares_are_written_as_one_number() -> None:
    assert (str(ImageSize.of(32)), ImageSize.of(32).written, ImageSize.of(32).flag) == ("32", 32, "32")
    tall = ImageSize.of((96, 64))
    assert (str(tall), tall.written, tall.flag, tall.short, tall.long) == ("96x64", [96, 64], "96 64", 64, 96)
    assert (tall.divided(16), tall.divided(64), tall.with_short(32)) == ((6, 4), None, (48, 32))
    assert ImageSize(64, 96).with_short(31) is None


def test_a_config_has_one_form_of_a_square() -> None:
    one, two, tall = (
        load_config(default_config("nayer"), flags=["--image-size", *size.split()]) for size in ("32", "32 32", "96 64")
    )
    assert (one.image_size, two.image_size, tall.image_size) == (32, 32, (96, 64))
    assert config_hash(one) == config_hash(two) != config_hash(tall)


@pytest.mark.parametrize("size", [ImageSize(96, 64), ImageSize.of(32)])
def test_a_header_is_read_as_it_was_written(size: ImageSize) -> None:
    info = ModelInfo(name="n", num_classes=2, image_size=size, mean=(0.5,), std=(0.25,), in_chans=1)
    assert ModelInfo(**read_header({HEADER: json.dumps(info.header())}, "x")) == info
    for wrong in ([96], [96, 0], [96, 64, 3], "96", 0):
        with pytest.raises(UserError, match="image_size"):
            read_header({HEADER: json.dumps(info.header() | {"image_size": wrong})}, "x")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_generators_make_that_shape(channels: int) -> None:
    vectors = torch.randn(2, 5)
    small: dict[str, Any] = {"width": 8, "in_chans": channels}
    for size in ((24, 16), (96, 64)):
        assert make_decoder(5, size, **small)(vectors).shape == (2, channels, *size)
    assert DcganDecoder(5, (32, 16), **small)(vectors).shape == (2, channels, 32, 16)
    printed = PrintedDecoder(5, (8, 12), width=8, mean=(0.5,) * channels, std=(0.2,) * channels)
    assert printed(vectors).shape == (2, channels, 8, 12)
    assert BigGenerator(5, 3, (24, 16), **small)(vectors, torch.tensor([0, 2])).shape == (2, channels, 24, 16)
    assert LatentGenerator(2, 5, (32, 16), spatial=True, **small)().shape == (2, channels, 32, 16)


def test_sizes_that_generators_do_not_come_to() -> None:
    with pytest.raises(UserError, match=r"^--image-size 30 16: choose multiples of 4, as"):
        make_decoder(5, (30, 16))
    with pytest.raises(UserError, match=r"^--image-size 96 60: choose multiples of 16, as"):
        make_decoder(5, (96, 60))
    with pytest.raises(UserError, match=r"^--image-size 26 16: choose 4 to 7 pixels times a power of 2.*shorter side"):
        BigGenerator(5, 3, (26, 16))


def test_the_middle_is_kept_in_the_images_shape() -> None:
    assert middle_part(200, 100, ImageSize(96, 64), None) == pytest.approx((66.67, 0, 133.33, 100), abs=0.01)
    assert middle_part(64, 96, ImageSize(96, 64), 70) == (0, 0, 64, 96)
    # 70 on the shorter side: 200 x 300 becomes 70 x 105, of which the middle 64 x 96 is kept
    left, top, right, bottom = middle_part(200, 300, ImageSize(96, 64), 70)
    assert (right - left, bottom - top) == pytest.approx((64 * 200 / 70, 96 * 300 / 105))
    assert (left, top) == pytest.approx((3 * 200 / 70, 4 * 300 / 105))
    stripes = np.zeros((30, 90, 3), np.uint8)
    stripes[:, 40:50] = 255
    found = fitted(Image.fromarray(stripes), (30, 10), None, "bilinear")
    assert (found.shape, found.min()) == ((30, 10, 3), 255)
    arrays = torch.from_numpy(stripes)[None, :, :, :2]  # of two channels
    for filter_ in ("bilinear", "bicubic"):
        cut = resized(arrays, (15, 5), filter_)
        assert (tuple(cut.shape), int(cut.min())) == ((1, 15, 5, 2), 255)


def test_crops_and_mixtures_have_pixels_of_one_shape() -> None:
    torch.manual_seed(0)
    _, _, height, width = draw_boxes(4000, scale=0.1, device=torch.device("cpu"), height_to_width=2.0).unbind(1)
    ratio = width / (2 * height)  # in pixels
    assert ratio[(height < 1) & (width < 1)].min() >= 3 / 4 - 1e-5
    assert ratio[(height < 1) & (width < 1)].max() <= 4 / 3 + 1e-5
    assert random_resized_crop(torch.rand(3, 2, 8, 4), scale=0.5).shape == (3, 2, 8, 4)
    own = draw_mix("cutmix", 500, (16, 4), alpha=1.0, device=torch.device("cpu")).own[:, 0]
    assert own.shape == (500, 16, 4)
    pasted = 1 - own
    rows, columns = pasted.amax(2).sum(1) / 16, pasted.amax(1).sum(1) / 4
    assert (rows - columns).abs().mean() < 0.2, "a box has the image's shape, but for pixels and edges"


def test_windows_of_patches() -> None:
    chances = window_chances((6, 4), (3, 4), 0.1)
    assert (chances.shape, float(chances.sum())) == ((4, 1), pytest.approx(1))
    window = TokenWindow(torch.device("cpu"))
    window.place.fill_(0.999)
    assert window.indices((6, 4), (3, 4)).tolist() == list(range(12, 24))
    assert window.indices((4, 6), (4, 2)).tolist() == [row * 6 + column for row in range(4) for column in (4, 5)]


def test_maps_are_pooled_to_the_smaller_of_both() -> None:
    assert str(SharedForm(8, ImageSize(3, 2))) == "shared8x3x2"
    for text in ("shared8", "shared8x3", "shared8x3x2"):
        assert str(SharedForm.parse(text, "--student")) == text
    maps = torch.rand(2, 3, 6, 4)
    assert torch.equal(pooled_to(maps, ImageSize(3, 2)), F.avg_pool2d(maps, 2))
    assert pooled_to(maps, ImageSize(6, 8)) is maps


def test_muse_keeps_the_shape() -> None:
    assert scaled(ImageSize(96, 64), 32) == (48, 32)
    with pytest.raises(UserError, match=r"^--method.image-sizes 33: .*choose a multiple of 2"):
        scaled(ImageSize(96, 64), 33)
    assert data_ratio_capacity(100, 1.0, full_size=(96, 64), image_size=(48, 32)) == 400


def test_noise_is_of_the_images_shape() -> None:
    noise = natural_noise(INFO, 4)
    assert noise.shape == (4, 1, 96, 64)
    assert (float(noise.mean()), float(noise.std())) == pytest.approx((0, 1), abs=1e-5)


def test_grids_of_any_channels() -> None:
    images = torch.zeros(2, 8, 4, 4, dtype=torch.uint8)
    images[0, ..., 0] = 100  # a mean of 25
    grid = np.asarray(class_grid(images, torch.tensor([0, 1]), 2, per_class=1, scale=1))
    assert grid.shape == (2 + 2 * (8 + 2), 2 + 4 + 2, 3)
    assert grid[2:10, 2:6].min() == grid[2:10, 2:6].max() == 25


def test_pools_of_any_channels_go_in_and_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 8, 4)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(5))
    pool = str(tmp_path / "pool")
    assert main(["pool", "import", str(tmp_path / "a.npz"), pool]) == 0
    assert PoolFiles(tmp_path / "pool").manifest.layout.fields["images"].shape == (12, 8, 4)
    assert main(["pool", "export", pool, str(tmp_path / "b.npz")]) == 0
    assert np.array_equal(np.load(tmp_path / "b.npz")["images"], images)
    capsys.readouterr()
    for name in ("folder", "shards.tar"):
        assert main(["pool", "export", pool, str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        stem = name.removesuffix(".tar")
        assert line.endswith(f"these images have 4; choose {stem}.npz or {stem}.safetensors")
        assert not (tmp_path / name).exists()


def test_tall_grey_pictures_go_in_and_out(tmp_path: Path) -> None:
    (tmp_path / "in" / "0").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in" / "0" / "a.png")
    assert main(["pool", "import", str(tmp_path / "in"), str(tmp_path / "pool")]) == 0
    assert main(["pool", "export", str(tmp_path / "pool"), str(tmp_path / "out")]) == 0
    (found,) = (tmp_path / "out").rglob("*.png")
    assert np.array_equal(np.asarray(Image.open(found)), pixels)
    assert main(["pool", "import", str(tmp_path / "in"), str(tmp_path / "half"), "--image-size", "6", "4"]) == 0
    assert PoolFiles(tmp_path / "half").manifest.layout.fields["images"].shape == (6, 4, 1)
