"""The only door to real images: for training teachers and for evaluation. Data-free methods cannot import it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd_fast.cifar_files import CifarFolder, find_cifar
from dfkd_fast.errors import UserError
from dfkd_fast.image_files import ImageFiles, Split, decode, find_images


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


STATISTICS = {
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Statistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tiny-imagenet": Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""what the field's teachers are normalised with; any other data set's are computed from its training images"""

_CIFAR10_CLASSES = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
_SOME_CIFAR100_CLASSES = {"aquarium_fish", "lawn_mower", "maple_tree", "pickup_truck", "worm"}
_WORDNET_ID = re.compile(r"n\d{8}")

_SAMPLED = 2000
"""training images that unknown statistics are computed from: enough for two digits, cheap to decode for a test split"""
_HELD_OUT = 0.3
"""share of each digit's scans that is the test split"""


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

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, H, W, C) uint8 and labels (B,) in their order; the last batch may be smaller."""
        yield from zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)


def load_split(source: str | Path, split: Split, *, image_size: int | None = None, flag: str = "--data") -> ImageSet:
    """Read one split of real, labelled images.

    `source` is `digits` (scikit-learn's handwritten digits, 30 % held out for testing), or a path: a tree
    `<split>/<class>/*.jpg`, a tar of one, a folder with one tar for each split, a tree `<class>/*.jpg` that is taken
    whole for either split, or a folder with torchvision's CIFAR-10 or CIFAR-100 files. Images keep their size unless
    `image_size` is given: then the short side is scaled to it and the middle square kept.

    Raises UserError that names `flag`: for a source that is not there, empty, damaged, of one class or of mixed sizes.
    """
    path = Path(source)
    if str(source) == "digits":
        found = _digits(split, image_size or 32)
    elif not path.exists():
        raise UserError(f"{flag} {source}: no such folder or file; choose digits or a path")
    elif (cifar := find_cifar(path, flag=flag)) is not None:
        found = _cifar(cifar, split, flag)
    else:
        found = _image_files(path, split, image_size, flag)
    if len(found.class_names) < 2:
        raise UserError(f"{flag} {source}: one class ({found.class_names[0]}); expected <class>/*.jpg for each class")
    images = _resized(found.images, image_size)
    name = "digits" if str(source) == "digits" else path.resolve().name.partition(".")[0]
    digest = _digest(images, found.labels, found.class_names)
    return ImageSet(name, images, found.labels, found.class_names, *found.statistics, digest)


class _Found(NamedTuple):
    """A split as its source holds it."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    statistics: Statistics


def _digits(split: Split, size: int) -> _Found:
    """scikit-learn's 1,797 scans (8x8, 17 grey levels), enlarged bilinearly; a fixed 30 % of each digit is held out."""
    from sklearn.datasets import load_digits

    levels, digits = load_digits(return_X_y=True)
    scans = torch.from_numpy(levels).view(-1, 1, 8, 8) * (255 / 16)
    large = F.interpolate(scans, size=(size, size), mode="bilinear").round().to(torch.uint8)
    images = large.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    shuffled = np.random.default_rng(0).permutation(len(digits))
    held_out = np.zeros(len(digits), dtype=bool)
    for digit in range(10):
        members = shuffled[digits[shuffled] == digit]
        held_out[members[: round(_HELD_OUT * len(members))]] = True
    is_test = torch.from_numpy(held_out)
    chosen = is_test if split == "test" else ~is_test
    names = tuple(str(digit) for digit in range(10))
    return _Found(images[chosen], torch.from_numpy(digits).long()[chosen], names, compute_statistics(images[~is_test]))


def _cifar(folder: CifarFolder, split: Split, flag: str) -> _Found:
    images, labels, class_names = folder.read(split, flag=flag)
    return _Found(images, labels, class_names, known_statistics(class_names) or compute_statistics(images))


def _image_files(path: Path, split: Split, image_size: int | None, flag: str) -> _Found:
    files = find_images(path, split, flag=flag)
    images = decode(files, range(len(files.names)), image_size=image_size, flag=flag)
    statistics = known_statistics(files.class_names)
    if statistics is None:
        train = files if split == "train" else _train_files(path, files, flag)
        indices = np.linspace(0, len(train.names) - 1, min(_SAMPLED, len(train.names))).round().astype(int).tolist()
        is_same = train.names == files.names
        sample = images[indices] if is_same else decode(train, indices, image_size=image_size, flag=flag)
        statistics = compute_statistics(sample)
    return _Found(images, torch.tensor(files.labels), files.class_names, statistics)


def _train_files(path: Path, test: ImageFiles, flag: str) -> ImageFiles:
    """Both splits are normalised alike, so unknown statistics come from the training files where there are any."""
    with contextlib.suppress(UserError):
        return find_images(path, "train", flag=flag)
    return test


def known_statistics(class_names: Sequence[str]) -> Statistics | None:
    """The field's statistics for a data set that its class names give away; None for any other."""
    names = set(class_names)
    if names == _CIFAR10_CLASSES:
        return STATISTICS["cifar10"]
    if len(names) == 100 and names >= _SOME_CIFAR100_CLASSES:
        return STATISTICS["cifar100"]
    if all(_WORDNET_ID.fullmatch(name) for name in names):
        return STATISTICS["tiny-imagenet" if len(names) == 200 else "imagenet"]
    return None


def compute_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation (at least one grey level) of each channel over all pixels of (N, H, W, C) uint8."""
    total = torch.zeros(images.shape[-1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for pixels in images.flatten(0, 2).split(1 << 20):
        values = pixels.long()
        total += values.sum(0)
        squares += values.square().sum(0)
    count = images[..., 0].numel()
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).sqrt().clamp_min(1.0)
    return Statistics(tuple((mean / 255).tolist()), tuple((std / 255).tolist()))


def _resized(images: Tensor, size: int | None) -> Tensor:
    """(N, S, S, C) uint8 -> (N, size, size, C) uint8, bilinear with antialiasing."""
    if size is None or images.shape[1] == size:
        return images
    scaled = [
        F.interpolate(chunk.permute(0, 3, 1, 2).float(), size=(size, size), mode="bilinear", antialias=True)
        for chunk in images.split(1024)
    ]
    return torch.cat([chunk.round().to(torch.uint8) for chunk in scaled]).permute(0, 2, 3, 1).contiguous()


def _digest(images: Tensor, labels: Tensor, class_names: Sequence[str]) -> str:
    found = sha256("\n".join((*class_names, str(tuple(images.shape)))).encode())
    found.update(images.contiguous().numpy().data)
    found.update(labels.numpy().data)
    return found.hexdigest()
