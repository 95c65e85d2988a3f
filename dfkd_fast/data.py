"""The only door to real images: for training teachers and for evaluation. Data-free methods cannot import it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfkd_fast.cifar_files import CifarFiles, find_cifar
from dfkd_fast.class_folders import Split
from dfkd_fast.errors import UserError
from dfkd_fast.image_arrays import read_digits, read_medmnist, resized, with_channels
from dfkd_fast.image_files import ImageFiles, decode, find_images
from dfkd_fast.image_statistics import Statistics, compute_statistics, known_statistics
from dfkd_fast.image_stream import Decoding, ImageStream, make_decoder
from dfkd_fast.pictures import Channels

_SAMPLED = 2000
"""training images that unknown statistics are computed from: enough for two digits, cheap to decode for a test split"""
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
    mean: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    std: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    digest: str
    """hash of images, labels and class names"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.images.shape[1]

    def batches(self, batch_size: int, rows: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, H, W, C) uint8 and labels (B,) in their order; the last batch may be smaller."""
        part = slice(None) if rows is None else slice(rows.start, rows.stop)
        yield from zip(self.images[part].split(batch_size), self.labels[part].split(batch_size), strict=True)

    def resident(self, device: torch.device) -> ImageSet:
        """The same set with its images on the device, uploaded once and not for each evaluation, if they are few."""
        return replace(self, images=self.images.to(device)) if self.images.nbytes <= IN_MEMORY else self


def load_split(
    source: str | Path,
    split: Split,
    *,
    image_size: int | None = None,
    channels: Channels = 3,
    flag: str = "--data",
) -> ImageSet:
    """Read one split of real, labelled images.

    `source` is `digits` (scikit-learn's handwritten digits, 30 % held out for testing), or a path: a tree
    `<split>/<class>/*.jpg`, a tar or zip of one, a folder with one archive for each split, a tree `<class>/*.jpg` that
    is taken whole for either split, torchvision's CIFAR-10 or CIFAR-100 files in a folder or their archive, or a .npz
    file of MedMNIST. Images keep their size unless
    `image_size` is given: then the short side is scaled to it and the middle square kept. `channels`: 3 for RGB, where
    grey images have three equal channels, or 1 for grey, where colours count by their luma.

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
        found = _image_files(path, split, image_size, channels, flag)
    _check_classes(found.class_names, source, flag)
    images = resized(found.images, image_size)
    name = "digits" if str(source) == "digits" else _name(path)
    digest = _digest(images, found.labels, found.class_names)
    return ImageSet(name, images, found.labels, found.class_names, *found.statistics, digest)


def open_test(
    source: str | Path,
    *,
    image_size: int | None = None,
    decoding: Decoding,
    device: torch.device,
    channels: Channels = 3,
    in_memory: float = IN_MEMORY,
    flag: str = "--data",
) -> ImageSet | ImageStream:
    """The test split, for evaluation: as `load_split` reads it or, where image files would take more than `in_memory`
    bytes, a stream that decodes them anew each time.

    Large images are cut as `decoding.short_side` says. Raises UserError as `load_split` does, and for a decoder that is
    asked for and cannot be had.
    """
    path = Path(source)
    if not _holds_pictures(source, flag):
        decoding.check_needless(str(source))
        return load_split(source, "test", image_size=image_size, channels=channels, flag=flag)
    files = find_images(path, "test", flag=flag)
    _check_classes(files.class_names, source, flag)
    count, resize = len(files.names), decoding.short_side(image_size)
    large = count * channels * (image_size or 0) ** 2 > in_memory
    decoder = make_decoder(files, image_size, decoding, device, large=large, channels=channels, flag=flag)
    if decoder is not None and image_size is not None and large:
        statistics = _statistics(path, files, image_size, channels, flag)
        return ImageStream(_name(path), files, *statistics, image_size, decoder)
    if decoder is None:
        images = decode(
            files,
            range(count),
            image_size=image_size,
            channels=channels,
            resize=resize,
            workers=decoding.workers,
            flag=flag,
        )
    else:
        images = torch.cat([batch.cpu() for batch in decoder.batches(range(count), _DECODED_AT_ONCE)])
    labels, statistics = torch.tensor(files.labels), _statistics(path, files, image_size, channels, flag, images)
    digest = _digest(images, labels, files.class_names)
    return ImageSet(_name(path), images, labels, files.class_names, *statistics, digest)


def check_apart(source: str | Path, *, flag: str = "--data") -> None:
    """Raise UserError where the training images of a source are its test images: a tree without splits is both.

    By the files: large test images are cut otherwise than training images, so that pixels tell nothing.
    """
    path = Path(source)
    if not _holds_pictures(source, flag):
        return
    train, test = (find_images(path, split, flag=flag) for split in ("train", "test"))
    if (train.source, train.names) == (test.source, test.names):
        raise UserError(f"{flag} {source}: no test split apart from the training images; expected train/ and test/")


def _holds_pictures(source: str | Path, flag: str) -> bool:
    """Whether a source is a folder or archive of encoded images."""
    path = Path(source)
    if str(source) == "digits" or not path.exists() or path.suffix == ".npz":
        return False
    return find_cifar(path, flag=flag) is None


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
    statistics: Statistics


def _digits(split: Split, size: int, channels: Channels) -> _Found:
    images, labels, is_test = read_digits(size, channels)
    chosen = is_test if split == "test" else ~is_test
    return _Found(images[chosen], labels[chosen], tuple("0123456789"), compute_statistics(images[~is_test]))


def _cifar(files: CifarFiles, split: Split, channels: Channels, flag: str) -> _Found:
    images, labels, class_names = files.read(split, flag=flag)
    images = with_channels(images, channels)
    return _Found(images, labels, class_names, known_statistics(class_names, channels) or compute_statistics(images))


def _medmnist(path: Path, split: Split, channels: Channels, flag: str) -> _Found:
    images, labels, class_names = read_medmnist(path, split, flag=flag)
    train = images if split == "train" else read_medmnist(path, "train", flag=flag)[0]
    statistics = compute_statistics(with_channels(train, channels))
    return _Found(with_channels(images, channels), labels, class_names, statistics)


def _image_files(path: Path, split: Split, image_size: int | None, channels: Channels, flag: str) -> _Found:
    files = find_images(path, split, flag=flag)
    images = decode(files, range(len(files.names)), image_size=image_size, channels=channels, flag=flag)
    train = files if split == "train" else None
    statistics = _statistics(path, files, image_size, channels, flag, images, train)
    return _Found(images, torch.tensor(files.labels), files.class_names, statistics)


def _statistics(
    path: Path,
    files: ImageFiles,
    image_size: int | None,
    channels: Channels,
    flag: str,
    images: Tensor | None = None,
    train: ImageFiles | None = None,
) -> Statistics:
    """The known ones, else those of the training files; `images`: the decoded `files`, where they are."""
    statistics = known_statistics(files.class_names, channels)
    if statistics is None:
        train = train or _train_files(path, files, flag)
        indices = np.linspace(0, len(train.names) - 1, min(_SAMPLED, len(train.names))).round().astype(int).tolist()
        if images is not None and train.names == files.names:
            sample = images[indices]
        else:
            sample = decode(train, indices, image_size=image_size, channels=channels, flag=flag)
        statistics = compute_statistics(sample)
    return statistics


def _train_files(path: Path, test: ImageFiles, flag: str) -> ImageFiles:
    """Both splits are normalised alike, so unknown statistics come from the training files where there are any."""
    with contextlib.suppress(UserError):
        return find_images(path, "train", flag=flag)
    return test


def _digest(images: Tensor, labels: Tensor, class_names: Sequence[str]) -> str:
    found = sha256("\n".join((*class_names, str(tuple(images.shape)))).encode())
    found.update(images.contiguous().numpy().data)
    found.update(labels.numpy().data)
    return found.hexdigest()
