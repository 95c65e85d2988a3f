"""Test images that are decoded for each evaluation: the field's crop, each image once, by either decoder alike."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dfkd_fast.data.splits import ImageSet, load_split, load_test_split
from dfkd_fast.data.stream import Decoding, ImageStream
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_fast.pool import stream_dali
from dfkd_fast.training.evaluate import evaluate

CPU = torch.device("cpu")
SIZE, RESIZE = 28, 32
SIDES = ((50, 38), (37, 61), (32, 32), (28, 28), (28, 40), (120, 33), (20, 24))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of JPEGs of many sizes, smooth enough to survive compression."""
    root, noise = tmp_path_factory.mktemp("tree"), np.random.default_rng(0)
    for label in ("ant", "bee"):
        (root / "val" / label).mkdir(parents=True)
        for index, (width, height) in enumerate(SIDES):
            coarse = Image.fromarray(noise.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(
                root / "val" / label / f"{index}.jpg", quality=95
            )
    return root


def stream(source: Path, decoder: Literal["auto", "dali", "pil"], **options: Any) -> ImageStream:
    decoding = Decoding(decoder=decoder, workers=2, **{"resize": RESIZE, **options})
    found = load_test_split(source, image_size=SIZE, decoding=decoding, device=CPU, in_memory=0)
    assert isinstance(found, ImageStream)
    return found


def pixels(images: ImageStream | ImageSet, batch_size: int = 5, rows: range | None = None) -> Tensor:
    return torch.cat([batch for batch, _ in images.batches(batch_size, rows)]).int()


def need_dali() -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (pip install dfkd-fast[dali])")


def test_crops_as_the_field_does(tree: Path) -> None:
    """Within a grey level of torchvision's transforms; an image that has the size already is taken as it is."""
    ensure_importable()
    from torchvision import transforms

    found = pixels(stream(tree, "pil"))
    usual = transforms.Compose([transforms.Resize(RESIZE), transforms.CenterCrop(SIZE)])
    for row, file in enumerate(sorted((tree / "val").glob("*/*.jpg"))):
        image = Image.open(file)
        expected = image if image.size == (SIZE, SIZE) else usual(image)
        inner = (slice(1, -1), slice(1, -1))  # at the edge, torchvision averages over pixels that it then cuts off
        difference = found[row].numpy()[inner] - np.asarray(expected, dtype=int)[inner]
        assert abs(difference).max() <= 1, (image.size, abs(difference).max())


@pytest.mark.parametrize("decoder", ["pil", "dali"])
def test_each_image_once_and_in_its_order(tree: Path, tmp_path: Path, decoder: Literal["dali", "pil"]) -> None:
    if decoder == "dali":
        need_dali()
    whole = stream(tree, decoder)
    images, labels = pixels(whole), torch.cat([labels for _, labels in whole.batches(5)])
    assert labels.tolist() == [0] * len(SIDES) + [1] * len(SIDES) == whole.labels.tolist()
    assert torch.equal(pixels(whole, batch_size=3), images)
    assert torch.equal(torch.cat([pixels(whole, rows=range(4)), pixels(whole, rows=range(4, 14))]), images)
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        for file in sorted(tree.rglob("*.jpg"), reverse=True):
            tar.add(file, file.relative_to(tree))
    assert torch.equal(pixels(stream(tmp_path / "val.tar", decoder)), images)
    kept = load_test_split(tree, image_size=SIZE, decoding=Decoding(decoder=decoder, resize=RESIZE), device=CPU)
    assert isinstance(kept, ImageSet)
    assert torch.equal(kept.resident(CPU).images.int(), images)


def test_decoders_differ_by_a_grey_level_at_most(tree: Path) -> None:
    need_dali()
    for resize in (RESIZE, SIZE):
        difference = (pixels(stream(tree, "dali", resize=resize)) - pixels(stream(tree, "pil", resize=resize))).abs()
        assert difference.max() <= 1
        assert difference.float().mean() < 0.3


def test_small_sets_are_decoded_once(tree: Path) -> None:
    found = load_test_split(tree, image_size=SIZE, decoding=Decoding(), device=CPU)
    assert isinstance(found, ImageSet)
    assert torch.equal(found.images, load_split(tree, "test", image_size=SIZE).images)  # below 96 pixels: no margin
    large = load_test_split(tree, image_size=224, decoding=Decoding(), device=CPU)
    with_margin = load_test_split(tree, image_size=224, decoding=Decoding(resize=256), device=CPU)
    assert isinstance(large, ImageSet)
    assert isinstance(with_margin, ImageSet)
    assert torch.equal(large.images, with_margin.images)
    assert not torch.equal(large.images, load_split(tree, "test", image_size=224).images)


class Part(Runtime):
    """A rank of several that only notes what it would have added to the others'."""

    def all_reduce(self, value: Tensor) -> Tensor:
        NOTED.append(value)
        return value


NOTED: list[Tensor] = []


@dataclass(frozen=True)
class Answers:
    """Names the class by an image's mean, so that every image has its own answer."""

    info: ModelInfo

    def __call__(self, view: Tensor) -> Tensor:
        return torch.stack([view.mean((1, 2, 3)), view[:, 0].mean((1, 2))], 1)


def test_ranks_share_the_images(tree: Path) -> None:
    """The parts of ranks add up to what one finds: none is counted twice, none left out; some of 16 have none."""
    images = stream(tree, "pil")
    info = ModelInfo(name="n", num_classes=2, image_size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)
    one = Runtime(device=CPU, precision="fp32", channels_last=False)
    whole = evaluate(Answers(info), images, info=info, runtime=one, batch_size=4)
    for ranks in (3, 16):
        NOTED.clear()
        for rank in range(ranks):
            part = Part(device=CPU, precision="fp32", channels_last=False, rank=rank, world_size=ranks)
            evaluate(Answers(info), images, info=info, runtime=part, batch_size=4, shared=True)
        assert len(NOTED) == ranks
        assert torch.equal(sum(NOTED)[:, 0], whole.predictions)  # type: ignore[index]
    assert 0 < whole.predictions.sum() < len(images)


@pytest.mark.parametrize("decoder", ["pil", "dali"])
def test_a_damaged_file_is_named(tree: Path, tmp_path: Path, decoder: Literal["dali", "pil"]) -> None:
    if decoder == "dali":
        need_dali()
    good = sorted(tree.rglob("*.jpg"))[0].read_bytes()
    for number, name in enumerate(("n00000001", "n00000002")):  # of ImageNet, so that nobody computes statistics
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{number}.jpg").write_bytes(good)
    for content in (b"no image", good[:300]):
        (tmp_path / "n00000002" / "1.jpg").write_bytes(content)
        with pytest.raises(UserError, match=r"--data .*: n00000002/1.jpg cannot be decoded"):
            pixels(stream(tmp_path, decoder))


def test_what_cannot_be_had_is_said(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "val.tar.gz", "w:gz") as tar:
        tar.add(tree / "val", "val")
    with pytest.raises(UserError, match=r"--eval\.decoder dali: unpack the tar"):
        stream(tmp_path / "val.tar.gz", "dali")
    with pytest.raises(UserError, match=r"--eval\.decoder pil: digits is no folder"):
        load_test_split("digits", decoding=Decoding(decoder="pil"), device=CPU)
    with pytest.raises(UserError, match=r"--eval\.resize 20: choose 28"):
        stream(tree, "pil", resize=20)

    def missing(name: str) -> None:
        raise ImportError("no DALI")

    monkeypatch.setattr(stream_dali.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"--eval\.decoder dali: NVIDIA DALI is missing"):
        stream(tree, "dali")
    found = stream(tree, "auto")
    assert capsys.readouterr().out.count("Pillow decodes 14 images") == 1
    assert len(pixels(found)) == 14
