"""Real images come in from every supported form, in a fixed order; what cannot be read is named at once."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from dfkd_fast.data.arrays import resized
from dfkd_fast.data.splits import check_disjoint_splits, load_split, load_test_split
from dfkd_fast.data.statistics import compute_statistics
from dfkd_fast.data.stream import Decoding
from dfkd_fast.errors import UserError

CLASSES = ("ant", "bee", "cow")
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def picture(split: str, label: int, index: int, size: int = 8) -> np.ndarray:
    """A smooth picture that differs for every split, class and index."""
    rows, columns = np.mgrid[0:size, 0:size]
    base = 40 * label + 10 * index + (100 if split == "train" else 0)
    return np.stack([base + rows, base + columns, np.full_like(rows, base)], axis=-1).astype(np.uint8)


def write_tree(root: Path, splits: tuple[str, ...] = ("train", "test"), *, suffix: str = ".png", size: int = 8) -> Path:
    """Three classes; three training and two test pictures each."""
    for split in splits:
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(3 if split == "train" else 2):
                Image.fromarray(picture(split, label, index, size)).save(folder / f"{index}{suffix}")
    return root


def expected(split: str, size: int = 8) -> tuple[Tensor, Tensor]:
    count = 3 if split == "train" else 2
    images = np.stack([picture(split, label, index, size) for label in range(3) for index in range(count)])
    return torch.from_numpy(images), torch.arange(3).repeat_interleave(count)


def assert_loads(source: Path, split: str) -> None:
    found = load_split(source, split)  # type: ignore[arg-type]
    images, labels = expected(split)
    assert torch.equal(found.images, images)
    assert torch.equal(found.labels, labels)
    assert found.class_names == CLASSES


def as_tar(tree: Path, path: Path, arcname: str = ".", mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.add(tree, arcname=arcname)
    return path


def message_of(source: str | Path, split: str = "test", **options: int) -> str:
    with pytest.raises(UserError) as caught:
        load_split(source, split, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(f"--data {source}")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("split", ["train", "test"])
def test_image_folder(tmp_path: Path, split: str) -> None:
    assert_loads(write_tree(tmp_path), split)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("name", "mode"), [("set.tar", "w"), ("set.tar.gz", "w:gz"), ("set.tgz", "w:gz")])
@pytest.mark.parametrize("arcname", [".", "animals", "some/where"])
def test_tar_of_a_tree(tmp_path: Path, split: str, name: str, mode: str, arcname: str) -> None:
    tree = write_tree(tmp_path / "tree")
    assert_loads(as_tar(tree, tmp_path / name, arcname, mode), split)


@pytest.mark.parametrize("split", ["train", "test"])
def test_folder_with_one_tar_a_split(tmp_path: Path, split: str) -> None:
    tree = write_tree(tmp_path / "tree")
    (tmp_path / "tars").mkdir()
    as_tar(tree / "train", tmp_path / "tars" / "train.tar.gz", "train")
    as_tar(tree / "test", tmp_path / "tars" / "test.tar.gz", "test")
    assert_loads(tmp_path / "tars", split)


def test_class_folders_alone_serve_either_split(tmp_path: Path) -> None:
    root = write_tree(tmp_path) / "test"
    for split in ("train", "test"):
        found = load_split(root, split)  # type: ignore[arg-type]
        assert torch.equal(found.images, expected("test")[0])


@pytest.mark.parametrize("packed", [False, True])
def test_training_images_are_no_test_images(tmp_path: Path, packed: bool) -> None:
    """Also where test images would be cut otherwise."""
    both, whole = write_tree(tmp_path / "both"), write_tree(tmp_path / "whole", ("train",)) / "train"
    sources = [as_tar(root, tmp_path / f"{root.name}.tar.gz") if packed else root for root in (both, whole)]
    check_disjoint_splits("digits")
    check_disjoint_splits(sources[0])
    with pytest.raises(UserError, match=r"^--data .*: no test split apart from the training images; expected train/"):
        check_disjoint_splits(sources[1])


def test_val_is_a_test_split_and_an_unlabelled_test_folder_is_passed_over(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ("train", "val"))
    assert torch.equal(load_split(root, "test").images, expected("test")[0])
    (root / "test" / "images").mkdir(parents=True)
    Image.fromarray(picture("test", 0, 0)).save(root / "test" / "images" / "0.png")
    assert torch.equal(load_split(root, "test").images, expected("test")[0])


def test_nested_class_folders_hidden_files_and_notes(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    for split in ("train", "test"):
        for name in CLASSES:
            nested = root / split / name / "images"
            nested.mkdir()
            for file in list((root / split / name).glob("*.png")):
                file.rename(nested / file.name)
    (root / "README.txt").write_text("a note")
    (root / "train" / "ant" / "._0.png").write_bytes(b"left by a file manager")
    assert_loads(root, "train")


def test_jpeg_and_grey_images_become_rgb(tmp_path: Path) -> None:
    root = write_tree(tmp_path, suffix=".jpg")
    grey = np.full((8, 8), 77, dtype=np.uint8)
    Image.fromarray(grey).save(root / "test" / "ant" / "0.jpg", quality=100)
    found = load_split(root, "test")
    assert found.images.shape == (6, 8, 8, 3)
    assert (found.images[0].int() - 77).abs().max() <= 2
    assert (found.images[1:].int() - expected("test")[0][1:].int()).abs().float().mean() < 4


def test_image_size_scales_the_short_side_and_keeps_the_middle(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 6:18] = 200  # the middle square and what its edges are interpolated from
    Image.fromarray(wide).save(root / "test" / "ant" / "0.png")
    found = load_split(root, "test", image_size=4)
    assert found.images.shape == (6, 4, 4, 3)
    assert (found.images[0] == 200).all()


def test_digits(tmp_path: Path) -> None:
    train, test = load_split("digits", "train"), load_split("digits", "test")
    assert (len(train), len(test)) == (1258, 539)
    assert train.images.shape[1:] == (32, 32, 3)
    assert train.images.dtype == torch.uint8
    assert train.class_names == tuple("0123456789")
    for split in (train, test):
        shares = torch.bincount(split.labels) / len(split)
        assert (shares - 0.1).abs().max() < 0.005  # stratified
    scans, _ = load_digits(return_X_y=True)
    total = sum(float(split.images.double().sum()) for split in (train, test)) / (3 * 16 * 255)
    assert total == pytest.approx(scans.sum() / 16, rel=2e-3)  # enlarging keeps each scan's mean, but for rounding
    again = load_split("digits", "test")
    assert torch.equal(again.images, test.images)
    assert again.digest == test.digest != train.digest
    assert load_split("digits", "test", image_size=16).images.shape == (539, 16, 16, 3)


def write_cifar10(folder: Path) -> tuple[np.ndarray, list[int]]:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    labels = [index % 10 for index in range(12)]
    for number, name in enumerate([*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]):
        rows = slice(2 * number, 2 * number + 2)
        batch = {"data": pixels[rows].reshape(2, -1), "labels": labels[rows], "filenames": ["a", "b"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10_CLASSES}, protocol=2))
    return pixels, labels


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_torchvision_cifar10(tmp_path: Path, below: str) -> None:
    pixels, labels = write_cifar10(tmp_path / "cifar-10-batches-py")
    root = tmp_path / below
    train, test = load_split(root, "train"), load_split(root, "test")
    assert torch.equal(train.images, torch.from_numpy(pixels[:10].transpose(0, 2, 3, 1).copy()))
    assert torch.equal(test.images, torch.from_numpy(pixels[10:].transpose(0, 2, 3, 1).copy()))
    assert torch.cat([train.labels, test.labels]).tolist() == labels
    assert test.class_names == tuple(CIFAR10_CLASSES)
    assert load_split(root, "test", image_size=16).images.shape == (2, 16, 16, 3)


def test_torchvision_cifar100(tmp_path: Path) -> None:
    names = sorted({"aquarium_fish", "lawn_mower", "maple_tree", "pickup_truck", "worm"} | {f"c{i}" for i in range(95)})
    pixels = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
    for name in ("train", "test"):
        batch = {"data": pixels, "fine_labels": [0, 50, 99, 7], "coarse_labels": [0, 1, 2, 3]}
        (tmp_path / name).write_bytes(pickle.dumps(batch))
    (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    found = load_split(tmp_path, "train")
    assert found.labels.tolist() == [0, 50, 99, 7]
    assert torch.equal(found.images[1, 2, 3], torch.from_numpy(pixels[1].reshape(3, 32, 32)[:, 2, 3].copy()))


class Trap:
    """Unpickling it would run it."""

    sprung = False

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return (Trap.spring, ())

    @staticmethod
    def spring() -> None:
        Trap.sprung = True


def test_cifar_files_cannot_run_code(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "x")
    (tmp_path / "x" / "test_batch").write_bytes(pickle.dumps({"data": Trap(), "labels": []}))
    assert "is not allowed" in message_of(tmp_path / "x")
    assert not Trap.sprung


def test_cifar_files_that_lack_something(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "x")
    (tmp_path / "x" / "data_batch_3").unlink()
    assert "data_batch_3" in message_of(tmp_path / "x", "train")
    (tmp_path / "x" / "test_batch").write_bytes(pickle.dumps({"labels": [0]}))
    assert "no entry 'data'" in message_of(tmp_path / "x")


@pytest.mark.parametrize(
    "batch",
    [
        {"data": np.zeros((2, 100), np.uint8), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": None},
        {"data": "text", "labels": [0, 1]},
    ],
    ids=["short rows", "a label short", "no labels", "no array"],
)
def test_damaged_cifar_files(tmp_path: Path, batch: dict[str, object]) -> None:
    write_cifar10(tmp_path / "x")
    (tmp_path / "x" / "test_batch").write_bytes(pickle.dumps(batch))
    assert "damaged CIFAR files" in message_of(tmp_path / "x")


def test_statistics_are_those_of_all_pixels(tmp_path: Path) -> None:
    train = load_split(write_tree(tmp_path), "train")
    pixels = expected("train")[0].double().flatten(0, 2) / 255
    found = compute_statistics(train.images)
    assert found.mean == pytest.approx(pixels.mean(0).tolist(), rel=1e-12)
    assert found.std == pytest.approx(pixels.std(0, correction=0).tolist(), rel=1e-9)
    assert compute_statistics(torch.zeros(1, 2, 2, 3, dtype=torch.uint8)).std == (1 / 255,) * 3  # never zero


def test_labels_follow_another_order_of_the_classes(tmp_path: Path) -> None:
    found = load_split(write_tree(tmp_path), "test")
    turned = found.in_order(("cow", "ant", "bee"))
    names = [[images.class_names[label] for label in images.labels] for images in (found, turned)]
    assert names[0] == names[1]
    assert turned.labels.tolist() == [(label + 1) % 3 for label in found.labels.tolist()]
    assert turned.digest != found.digest


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos", "box", "nearest"])
def test_interpolation_is_the_filter_that_is_named(tmp_path: Path, name: str) -> None:
    """Of files and of arrays (CIFAR's), whatever reads them, against Pillow's own."""
    root = write_tree(tmp_path)
    images = [Image.fromarray(image) for image in expected("test")[0].numpy()]
    wanted = np.stack([np.asarray(image.resize((5, 5), Image.Resampling[name.upper()])) for image in images])
    found = load_split(root, "test", image_size=5, interpolation=name).images
    assert torch.equal(found, torch.from_numpy(wanted))
    decoding = Decoding(decoder="pil", interpolation=name)
    cpu = torch.device("cpu")
    whole = load_test_split(root, image_size=5, decoding=decoding, device=cpu)
    assert torch.equal(next(whole.batches(64))[0], found)
    (streamed, _), *_ = load_test_split(root, image_size=5, decoding=decoding, device=cpu, in_memory=0).batches(64)
    assert torch.equal(streamed, found)
    if name != "bilinear":  # which is torch's, within a grey level
        assert torch.equal(resized(expected("test")[0], 5, name), found)


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "a")
    tar = as_tar(root, tmp_path / "b.tar.gz")
    assert load_split(root, "test").digest == load_split(tar, "test").digest
    changed = picture("test", 2, 1)
    changed[0, 0, 0] ^= 1
    Image.fromarray(changed).save(root / "test" / "cow" / "1.png")
    assert load_split(root, "test").digest != load_split(tar, "test").digest


def test_batches_cover_everything_in_order(tmp_path: Path) -> None:
    found = load_split(write_tree(tmp_path), "train")
    batches = list(found.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 1]
    assert torch.equal(torch.cat([images for images, _ in batches]), found.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), found.labels)
    assert (len(found), found.num_classes, found.image_size) == (9, 3, (8, 8))


def test_absent_and_empty_sources(tmp_path: Path) -> None:
    assert message_of(tmp_path / "nowhere") == (
        f"--data {tmp_path / 'nowhere'}: no such folder or file; choose digits or a path"
    )
    assert message_of("digit").endswith("choose digits or a path")
    (tmp_path / "empty").mkdir()
    assert "no images in it; expected test/<class>/*.jpg" in message_of(tmp_path / "empty")


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", ("train",))
    assert message_of(root).endswith("no test split, only train")
    tars = tmp_path / "tars"
    tars.mkdir()
    as_tar(root / "train", tars / "train.tar.gz", "train")
    assert "no test split; expected test.tar.gz beside train.tar.gz" in message_of(tars)
    assert message_of(tars / "train.tar.gz").endswith("no test split, only train")


def test_classes_that_one_split_lacks(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    for file in (root / "test" / "bee").iterdir():
        file.unlink()
    assert message_of(root).endswith("2 classes in test but 3 in train; not in both: bee")


def test_images_outside_class_folders_and_single_classes(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "a")
    Image.fromarray(picture("test", 0, 0)).save(root / "test" / "stray.png")
    assert "test/stray.png lies in no class folder; expected <class>/stray.png" in message_of(root)
    single = write_tree(tmp_path / "b") / "test"
    for name in ("bee", "cow"):
        for file in (single / name).iterdir():
            file.unlink()
    assert "one class (ant)" in message_of(single)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "no image"])
def test_a_damaged_image_is_named(tmp_path: Path, packed: bool, damage: str) -> None:
    root = write_tree(tmp_path / "tree", suffix=".jpg")
    victim = root / "test" / "bee" / "1.jpg"
    victim.write_bytes(victim.read_bytes()[:-60] if damage == "truncated" else b"not a picture")
    message = message_of(as_tar(root, tmp_path / "x.tar.gz") if packed else root)
    assert "test/bee/1.jpg cannot be decoded" in message
    assert " at 0x" not in message


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_a_damaged_tar_is_named(tmp_path: Path, keep: float) -> None:
    tar = as_tar(write_tree(tmp_path / "tree"), tmp_path / "x.tar.gz")
    tar.write_bytes(tar.read_bytes()[: int(keep * tar.stat().st_size)] or b"nonsense")
    assert "not a readable tar" in message_of(tar)


def test_sizes_that_differ_need_image_size(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    Image.fromarray(picture("test", 1, 1, size=10)).save(root / "test" / "bee" / "1.png")
    assert message_of(root).endswith("test/bee/1.png has 10x10 pixels, others 8x8; give --image-size")
    assert load_split(root, "test", image_size=8).images.shape == (6, 8, 8, 3)
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(root / "test" / "bee" / "1.png")
    assert message_of(root).endswith("test/bee/1.png has 12x8 pixels, others 8x8; give --image-size")
