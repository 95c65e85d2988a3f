"""Labelled images in folders and tar files: find one split's files, read them, decode them in threads.

A tree is `<split>/<class>/...` or `<class>/...`; a tar holds such a tree; a folder may hold one tar for each split.
Folders above the splits or classes do not matter. Class indices follow the sorted names of the class folders.
"""

from __future__ import annotations

import contextlib
import itertools
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfkd_fast.errors import UserError, one_of
from dfkd_fast.notes import printable
from dfkd_fast.pictures import Channels, PictureReader

Split = Literal["train", "test"]
Parts = tuple[str, ...]

_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
_SPLIT_OF = {folder: split for split, folders in _SPLIT_FOLDERS.items() for folder in folders}
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_IN_FLIGHT = 1024  # files read ahead of the decoders


@dataclass(frozen=True)
class ImageFiles:
    """One split: which files of a folder or tar, and the class of each."""

    source: Path
    """a folder, or a tar"""
    names: tuple[str, ...]
    """paths in the source, sorted by class and then by name"""
    labels: tuple[int, ...]
    """class index of each file"""
    class_names: tuple[str, ...]
    """class folders, sorted"""

    def describe(self, index: int, flag: str) -> str:
        """The file at `index`, as an error names it."""
        return printable(f"{flag} {self.source}: {self.names[index]}")


def find_images(source: Path, split: Split, *, flag: str) -> ImageFiles:
    """The image files of one split. Raises UserError when there are none, or they do not lie in class folders."""
    if source.is_dir():
        tar = _tar_of_split(source, split, flag)
        if tar is not None:
            return find_images(tar, split, flag=flag)
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    else:
        with _opened(source, flag) as tar_file:
            names = [member.name for member in tar_file if member.isfile()]
    paths = {PurePosixPath(name).parts: name for name in names if _is_image(name)}
    if not paths:
        raise UserError(f"{flag} {source}: no images in it; expected {split}/<class>/*.jpg or <class>/*.jpg")
    by_class: dict[str, list[str]] = {}
    for path, name in _below_split(source, paths, split, flag).items():
        if len(path) < 2:
            raise UserError(f"{flag} {source}: {name} lies in no class folder; expected <class>/{path[-1]}")
        by_class.setdefault(path[0], []).append(name)
    class_names = tuple(sorted(by_class))
    return ImageFiles(
        source,
        names=tuple(name for key in class_names for name in sorted(by_class[key])),
        labels=tuple(index for index, key in enumerate(class_names) for _ in by_class[key]),
        class_names=class_names,
    )


def _tar_of_split(folder: Path, split: Split, flag: str) -> Path | None:
    """The tar in a folder that is called like the split; None when the folder holds no tars but a tree."""
    tars = {path.name.partition(".")[0].lower(): path for path in folder.iterdir() if path.name.endswith(_TAR_SUFFIXES)}
    found = [tars[name] for name in _SPLIT_FOLDERS[split] if name in tars]
    if found or not tars or any(path.is_dir() for path in folder.iterdir()):
        return found[0] if found else None
    beside = ", ".join(sorted(path.name for path in tars.values()))
    raise UserError(f"{flag} {folder}: no {split} split; expected {split}.tar.gz beside {beside}")


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in _IMAGE_SUFFIXES and not hidden


def _below_split(source: Path, paths: dict[Parts, str], split: Split, flag: str) -> dict[Parts, str]:
    """Take off what stands above the classes: folders that all paths share, and the split's where there are splits."""
    while True:
        folders = {path[0] for path in paths if len(path) > 2 and path[0].lower() in _SPLIT_OF}
        if folders or len({path[0] for path in paths}) > 1 or any(len(path) < 3 for path in paths):
            break
        paths = {path[1:]: name for path, name in paths.items()}
    if not folders:
        return paths
    classes = {folder: {path[1] for path in paths if path[0] == folder and len(path) > 2} for folder in folders}
    order = [folder for name in _SPLIT_FOLDERS[split] for folder in sorted(folders) if folder.lower() == name]
    if not order:
        raise UserError(f"{flag} {source}: no {split} split, only {one_of(sorted(folders))}")
    # An unlabelled test folder is common beside a labelled val: the first that has the other split's classes is taken.
    counterparts = sorted(folders - set(order))
    agreeing = [folder for folder in order if not counterparts or classes[folder] == classes[counterparts[0]]]
    if not agreeing:
        ours, theirs = classes[order[0]], classes[counterparts[0]]
        missing = ", ".join(sorted(ours ^ theirs)[:3])
        counts = f"{len(ours)} classes in {order[0]} but {len(theirs)} in {counterparts[0]}"
        raise UserError(f"{flag} {source}: {counts}; not in both: {missing}")
    return {path[1:]: name for path, name in paths.items() if path[0] == agreeing[0]}


def decode(
    files: ImageFiles,
    indices: Sequence[int],
    *,
    image_size: int | None,
    flag: str,
    channels: Channels = 3,
    resize: int | None = None,
    workers: int | None = None,
) -> Tensor:
    """Decode the files at `indices` into (N, H, W, channels) uint8, RGB or grey, in that order.

    With `image_size` the short side is scaled to it, or to `resize`, and the middle square kept; without it all must be
    equal squares. Raises UserError naming the first file that is damaged or has another size.
    """

    reader = PictureReader(channels)

    def load(job: tuple[int, bytes | Path]) -> tuple[int, np.ndarray]:
        position, content = job
        image = reader.read(content, files.describe(indices[position], flag))
        return position, fitted(image, image_size, resize)

    images: np.ndarray | None = None
    jobs = _contents(files, indices, flag)
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        while ahead := list(itertools.islice(jobs, _IN_FLIGHT)):
            for position, pixels in pool.map(load, ahead):
                if images is None:
                    images = np.empty((len(indices), *pixels.shape), dtype=np.uint8)
                _check_size(pixels, images, files.describe(indices[position], flag))
                images[position] = pixels
    reader.report(f"{flag} {files.source}")
    assert images is not None  # a split has at least one file
    return torch.from_numpy(images)


def _check_size(pixels: np.ndarray, images: np.ndarray, what: str) -> None:
    height, width, _ = pixels.shape
    if height != width or pixels.shape != images.shape[1:]:
        others = f"others {images.shape[2]}x{images.shape[1]}" if height == width else "not square"
        raise UserError(f"{what} has {width}x{height} pixels, {others}; give --image-size")


def _contents(files: ImageFiles, indices: Sequence[int], flag: str) -> Iterator[tuple[int, bytes | Path]]:
    """Position in `indices` and content of each file; a tar is read from front to back, in whatever order it has."""
    if files.source.is_dir():
        yield from ((position, files.source / files.names[index]) for position, index in enumerate(indices))
        return
    wanted = {files.names[index]: position for position, index in enumerate(indices)}
    with _opened(files.source, flag) as tar:
        for member in tar:
            reader = tar.extractfile(member) if member.name in wanted else None
            if reader is not None:
                yield wanted[member.name], reader.read()


@contextlib.contextmanager
def _opened(path: Path, flag: str) -> Iterator[tarfile.TarFile]:
    """A tar for reading; whatever is wrong with it, now or while it is read, becomes a UserError."""
    try:
        with tarfile.open(path) as tar:
            yield tar
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{flag} {path}: not a readable tar ({reason})") from error


def fitted(image: Image.Image, image_size: int | None, resize: int | None) -> np.ndarray:
    """(S, S, C) uint8: what `middle_square` keeps, scaled to `image_size` with a filter that averages."""
    if image_size is not None and image.size != (image_size, image_size):
        box = middle_square(*image.size, image_size, resize)
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def middle_square(width: int, height: int, size: int, resize: int | None) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what an image of `size` pixels a side is made from.

    The middle square; with `resize` what lies in the middle `size` pixels once the short side is scaled to `resize`,
    both sizes rounded as torchvision's Resize and CenterCrop do. An image of `size` x `size` is taken whole.
    """
    if resize is None or (width, height) == (size, size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side
    short = min(width, height)
    across, down = (int(resize * side / short) for side in (width, height))
    left, top = round((across - size) / 2), round((down - size) / 2)
    x, y = width / across, height / down
    return left * x, top * y, (left + size) * x, (top + size) * y
