"""Labelled images in folders, tars and zips: find one split's files, read them, decode them in threads.

A tree is `<split>/<class>/...` or `<class>/...` (`class_folders`); an archive holds such a tree; a folder may hold one
archive for each split. Class indices follow the sorted names of the class folders.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.data.class_folders import SPLIT_FOLDERS, Split, classes_of
from dfkd_fast.errors import UserError
from dfkd_fast.files.archives import Place, read_places
from dfkd_fast.files.limits import available_cores
from dfkd_fast.files.pictures import Channels, PictureReader, pillow_filter
from dfkd_fast.files.trees import is_tar, read_tree
from dfkd_fast.messages.notes import printable

_IN_FLIGHT = 1024  # files read ahead of the decoders


@dataclass(frozen=True)
class ImageFiles:
    """One split: which files of a folder or archive, and the class of each."""

    source: Path
    """a folder, a tar or a zip"""
    names: tuple[str, ...]
    """paths in the source, sorted by class and then by name"""
    labels: tuple[int, ...]
    """class index of each file"""
    class_names: tuple[str, ...]
    """class folders, sorted"""
    places: tuple[Place, ...] = field(repr=False)
    """where each file lies in the source"""

    @property
    def name(self) -> str:
        """The folder's or file's name, without its ending."""
        return self.source.resolve().name.partition(".")[0]

    def in_order(self, class_names: tuple[str, ...]) -> Self:
        """The same files, with labels that are indices into `class_names`: its own in another order."""
        place = {name: index for index, name in enumerate(class_names)}
        labels = tuple(place[self.class_names[label]] for label in self.labels)
        return replace(self, labels=labels, class_names=class_names)

    def describe(self, index: int, flag: str) -> str:
        """The file at `index`, as an error names it."""
        return printable(f"{flag} {self.source}: {self.names[index]}")


def find_images(source: Path, split: Split, *, flag: str) -> ImageFiles:
    """The image files of one split. Raises UserError when there are none, or they do not lie in class folders."""
    if source.is_dir():
        archive = _archive_of_split(source, split, flag)
        if archive is not None:
            return find_images(archive, split, flag=flag)
    what = f"{flag} {source}"
    tree = read_tree(source, what)
    by_class = classes_of(tree, source, split, what)
    names = tuple(name for members in by_class.values() for name in members)
    return ImageFiles(
        source,
        names=names,
        labels=tuple(index for index, members in enumerate(by_class.values()) for _ in members),
        class_names=tuple(by_class),
        places=tuple(tree.files[name] for name in names),
    )


def _archive_of_split(folder: Path, split: Split, flag: str) -> Path | None:
    """The archive in a folder that is called like the split; None when the folder holds no archives but a tree."""
    found: dict[str, Path] = {}
    inside = sorted(folder.iterdir())
    for path in inside:
        if not path.name.startswith(".") and (is_tar(path) or path.suffix.lower() == ".zip"):
            key = path.name.partition(".")[0].lower()
            if key in found:
                raise UserError(f"{flag} {folder}: {found[key].name} or {path.name}? Remove one")
            found[key] = path
    chosen = [found[name] for name in SPLIT_FOLDERS[split] if name in found]
    if chosen or not found or any(path.is_dir() for path in inside):
        return chosen[0] if chosen else None
    beside = ", ".join(sorted(path.name for path in found.values()))
    raise UserError(f"{flag} {folder}: no {split} split; expected {split}.tar.gz beside {beside}")


def decode(
    files: ImageFiles,
    indices: Sequence[int],
    *,
    image_size: Size | None,
    flag: str,
    channels: Channels = 3,
    resize: int | None = None,
    interpolation: str = "bilinear",
    workers: int | None = None,
) -> Tensor:
    """Decode the files at `indices` into (N, H, W, channels) uint8, RGB or grey, in that order.

    With `image_size` they are scaled to cover it, or its shorter side to `resize`, and the middle kept; without it all
    must be of one size. Raises UserError naming the first file that is damaged or has another size.
    """

    form: dict[str, Any] = {"image_size": image_size, "resize": resize, "interpolation": interpolation}
    images: np.ndarray | None = None
    for position, pixels in decoded(files, indices, channels=channels, workers=workers, flag=flag, **form):
        if images is None:
            images = _room((len(indices), *pixels.shape), f"{flag} {files.source}")
        _check_size(pixels, images, files.describe(indices[position], flag))
        images[position] = pixels
    assert images is not None  # a split has at least one file
    return torch.from_numpy(images)


def decoded(
    files: ImageFiles,
    indices: Sequence[int],
    *,
    image_size: Size | None,
    flag: str,
    channels: Channels = 3,
    resize: int | None = None,
    interpolation: str = "bilinear",
    workers: int | None = None,
    in_flight: int = _IN_FLIGHT,
) -> Iterator[tuple[int, np.ndarray]]:
    """What `decode` puts together, as it comes: a position in `indices`, and its image (H, W, channels) uint8. Up to
    `in_flight` of them are in memory at once.
    """
    reader = PictureReader(channels)

    def load(job: tuple[int, bytes | Path]) -> tuple[int, np.ndarray]:
        position, content = job
        image = reader.read(content, files.describe(indices[position], flag))
        return position, fitted(image, image_size, resize, interpolation)

    what = f"{flag} {files.source}"
    jobs = read_places(files.source, [files.places[index] for index in indices], what)
    with ThreadPoolExecutor(workers or min(8, available_cores())) as pool:
        while ahead := list(itertools.islice(jobs, in_flight)):
            yield from pool.map(load, ahead)
    reader.report(what)


def _room(shape: tuple[int, ...], what: str) -> np.ndarray:
    try:
        return np.empty(shape, dtype=np.uint8)
    except (MemoryError, ValueError):
        size = "x".join(map(str, shape))
        raise UserError(f"{what}: {size} pixels do not fit into memory; give a smaller --image-size") from None


def _check_size(pixels: np.ndarray, images: np.ndarray, what: str) -> None:
    if pixels.shape != images.shape[1:]:
        (height, width), others = pixels.shape[:2], f"{images.shape[2]}x{images.shape[1]}"
        raise UserError(f"{what} has {width}x{height} pixels, others {others}; give --image-size")


def fitted(image: Image.Image, image_size: Size | None, resize: int | None, interpolation: str) -> np.ndarray:
    """(H, W, C) uint8: what `middle_part` keeps, scaled to `image_size` by a filter of `pillow_filter`."""
    size = None if image_size is None else ImageSize.of(image_size)
    if size is not None and image.size != (size.width, size.height):
        box = middle_part(*image.size, size, resize)
        image = image.resize((size.width, size.height), pillow_filter(interpolation), box=box)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def middle_part(width: int, height: int, size: ImageSize, resize: int | None) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what an image of `size` is made from.

    As much of the middle as has its shape; with `resize` what lies in the middle once the image is scaled to cover
    that shape with `resize` pixels on the shorter side, both sides rounded as torchvision's Resize and CenterCrop do.
    An image of `size` is taken whole.
    """
    wide = size.width * height >= size.height * width  # then its width is what has to be covered
    if resize is None or (height, width) == size:
        across, down = (
            (width, width * size.height / size.width) if wide else (height * size.width / size.height, height)
        )
        left, top = (width - across) / 2, (height - down) / 2
        return left, top, left + across, top + down
    covered, own = (size.width, width) if wide else (size.height, height)
    columns, rows = (int(resize * covered * side / (size.short * own)) for side in (width, height))
    left, top = round((columns - size.width) / 2), round((rows - size.height) / 2)
    x, y = width / columns, height / rows
    return left * x, top * y, (left + size.width) * x, (top + size.height) * y
