"""The only door to real images: for training teachers and for evaluation. Data-free methods cannot import it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.data.arrays import read_digits, read_medmnist, resized, with_channels
from dfkd_fast.data.cifar import CifarFiles, find_cifar
from dfkd_fast.data.class_folders import Split
from dfkd_fast.data.files import ImageFiles, decode, find_images
from dfkd_fast.data.stream import Decoding, ImageStream, make_decoder, relabelled
from dfkd_fast.errors import UserError
from dfkd_fast.files.pictures import picture_channels

IN_MEMORY = 2**30
"""bytes of decoded test images above which they are decoded anew for each evaluation"""
_DECODED_AT_ONCE = 64


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set, decoded, in memory."""

    name: str
    """`digits`, or the folder's or file's name"""
    images: Tensor = field(repr=False)
    """(N, H, W, C) uint8"""
    labels: Tensor = field(repr=False)
    """(N,) int64"""
    class_names: tuple[str, ...]
    """K names; labels are indices into them"""
    digest: str
    """hash of images, labels and class names"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_size(self) -> ImageSize:
        """Height and width of the images in pixels."""
        return ImageSize(*self.images.shape[1:3])

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.images.shape[3]

    def batches(self, batch_size: int, rows: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, H, W, C) uint8 and labels (B,) in their order; the last batch may be smaller."""
        part = slice(None) if rows is None else slice(rows.start, rows.stop)
        yield from zip(self.images[part].split(batch_size), self.labels[part].split(batch_size), strict=True)

    def resident(self, device: torch.device) -> ImageSet:
        """The same set with its images on the device, uploaded once and not for each evaluation, if they are few."""
        return replace(self, images=self.images.to(device)) if self.images.nbytes <= IN_MEMORY else self

    def in_order(self, class_names: tuple[str, ...]) -> Self:
        """The same images, with labels that are indices into `class_names`: its own in another order."""
        labels = relabelled(self.labels, self.class_names, class_names)
        return replace(self, labels=labels, class_names=class_names, digest=_digest(self.images, labels, class_names))


def load_split(
    source: str | Path,
    split: Split,
    *,
    image_size: Size | None = None,
    channels: int = 3,
    interpolation: str = "bilinear",
    flag: str = "--data",
) -> ImageSet:
    """Read one split of real, labelled images.

    `source` is `digits` (scikit-learn's handwritten digits, 30 % held out for testing), or a path: a tree
    `<split>/<class>/*.jpg`, a tar or zip of one, a folder with one archive for each split, a tree `<class>/*.jpg` that
    is taken whole for either split, torchvision's CIFAR-10 or CIFAR-100 files in a folder or their archive, or a .npz
    file of MedMNIST. Images keep their size unless
    `image_size` is given: then they are scaled to cover it by the filter `interpolation` and the middle kept; scanned
    digits are stretched bilinearly. `channels`: 3 for RGB, where grey images have three equal channels, or 1 for grey,
    where colours count by their luma; any other number only a .npz file has, and `digits`, whose grey is repeated.

    Raises UserError that names `flag`: for a source that is not there, empty, damaged, of one class or of mixed sizes.
    """
    path = Path(source)
    if str(source) == "digits":
        found = _digits(split, image_size or 32, channels)
    elif not path.exists():
        raise UserError(f"{flag} {source}: no such folder or file; choose digits or a path")
    elif (cifar := find_cifar(path, flag=flag)) is not None:
        found = _cifar(cifar, split, channels, flag)
    elif path.suffix == ".npz":
        found = _medmnist(path, split, channels, flag)
    else:
        found = _image_files(path, split, image_size, channels, interpolation, flag)
    _check_classes(found.class_names, source, flag)
    images = resized(found.images, image_size, interpolation)
    name = "digits" if str(source) == "digits" else _name(path)
    digest = _digest(images, found.labels, found.class_names)
    return ImageSet(name, images, found.labels, found.class_names, digest)


def load_test_split(
    source: str | Path,
    *,
    image_size: Size | None = None,
    decoding: Decoding,
    device: torch.device,
    channels: int = 3,
    in_memory: float = IN_MEMORY,
    flag: str = "--data",
) -> ImageSet | ImageStream:
    """The test split, for evaluation: as `load_split` reads it or, where image files would take more than `in_memory`
    bytes, a stream that decodes them anew each time.

    Large images are cut as `decoding.short_side` says. Raises UserError as `load_split` does, and for a decoder that is
    asked for and cannot be had.
    """
    path = Path(source)
    if not holds_pictures(source, flag):
        decoding.check_needless(str(source))
        how = decoding.interpolation
        return load_split(source, "test", image_size=image_size, channels=channels, interpolation=how, flag=flag)
    files, kind = find_images(path, "test", flag=flag), picture_channels(channels, f"{flag} {source}")
    _check_classes(files.class_names, source, flag)
    count, resize = len(files.names), decoding.short_side(image_size)
    pixels = 0 if image_size is None else ImageSize.of(image_size).area
    large = count * channels * pixels > in_memory
    decoder = make_decoder(files, image_size, decoding, device, large=large, channels=kind, flag=flag)
    if decoder is not None and image_size is not None and large:
        return ImageStream(_name(path), files, ImageSize.of(image_size), kind, decoder)
    if decoder is None:
        images = decode(
            files,
            range(count),
            image_size=image_size,
            channels=kind,
            resize=resize,
            interpolation=decoding.interpolation,
            workers=decoding.workers,
            flag=flag,
        )
    else:
        images = torch.cat([batch.cpu() for batch in decoder.batches(range(count), _DECODED_AT_ONCE)])
    labels = torch.tensor(files.labels)
    digest = _digest(images, labels, files.class_names)
    return ImageSet(_name(path), images, labels, files.class_names, digest)


def check_disjoint_splits(source: str | Path, *, flag: str = "--data") -> None:
    """Raise UserError where the training images of a source are its test images: a tree without splits is both.

    By the files: large test images are cut otherwise than training images, so that pixels tell nothing.
    """
    path = Path(source)
    if not holds_pictures(source, flag):
        return
    train, test = (find_images(path, split, flag=flag) for split in ("train", "test"))
    if (train.source, train.names) == (test.source, test.names):
        raise UserError(f"{flag} {source}: no test split apart from the training images; expected train/ and test/")


def holds_pictures(source: str | Path, flag: str) -> bool:
    """Whether a source is a folder or archive of encoded images, which `find_pictures` lists."""
    path = Path(source)
    if str(source) == "digits" or not path.exists() or path.suffix == ".npz":
        return False
    return find_cifar(path, flag=flag) is None


def find_pictures(source: str | Path, split: Split, *, flag: str = "--data") -> ImageFiles:
    """The files of one split, not decoded. Raises UserError as `load_split` does."""
    files = find_images(Path(source), split, flag=flag)
    _check_classes(files.class_names, source, flag)
    return files


def _check_classes(class_names: Sequence[str], source: str | Path, flag: str) -> None:
    if len(class_names) < 2:
        raise UserError(f"{flag} {source}: one class ({class_names[0]}); expected <class>/*.jpg for each class")


def _name(path: Path) -> str:
    return path.resolve().name.partition(".")[0]


class _Found(NamedTuple):
    """A split as its source holds it."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def _digits(split: Split, size: Size, channels: int) -> _Found:
    images, labels, is_test = read_digits(size, channels)
    chosen = is_test if split == "test" else ~is_test
    return _Found(images[chosen], labels[chosen], tuple("0123456789"))


def _cifar(files: CifarFiles, split: Split, channels: int, flag: str) -> _Found:
    images, labels, class_names = files.read(split, flag=flag)
    return _Found(with_channels(images, channels, f"{flag} {files.source}"), labels, class_names)


def _medmnist(path: Path, split: Split, channels: int, flag: str) -> _Found:
    images, labels, class_names = read_medmnist(path, split, flag=flag)
    return _Found(with_channels(images, channels, f"{flag} {path}"), labels, class_names)


def _image_files(
    path: Path, split: Split, image_size: Size | None, channels: int, interpolation: str, flag: str
) -> _Found:
    files = find_images(path, split, flag=flag)
    every, kind = range(len(files.names)), picture_channels(channels, f"{flag} {path}")
    images = decode(files, every, image_size=image_size, channels=kind, interpolation=interpolation, flag=flag)
    return _Found(images, torch.tensor(files.labels), files.class_names)


def _digest(images: Tensor, labels: Tensor, class_names: Sequence[str]) -> str:
    return images_digest(images.split(1024), tuple(images.shape), labels, class_names)


def images_digest(chunks: Iterable[Tensor], shape: tuple[int, ...], labels: Tensor, class_names: Sequence[str]) -> str:
    """SHA-256 of images (N, H, W, C) uint8, which come in chunks, their labels (N,) int64 and classes."""
    found = sha256("\n".join((*class_names, str(shape))).encode())
    for chunk in chunks:
        found.update(chunk.contiguous().numpy().data)
    found.update(labels.numpy().data)
    return found.hexdigest()
