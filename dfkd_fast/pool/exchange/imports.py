"""A pool from images that another program wrote. It becomes one whole, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.errors import UserError
from dfkd_fast.files.archives import Tree
from dfkd_fast.files.pictures import PictureReader, is_deep, opened
from dfkd_fast.files.trees import class_name, folder_tree, is_hidden, is_tar, pictures
from dfkd_fast.messages.notes import note, printable
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.disk.manifest import COPY, MANIFEST
from dfkd_fast.pool.exchange.exports import UNLABELLED
from dfkd_fast.pool.exchange.import_arrays import BATCH, Batch, read_npz, read_safetensors
from dfkd_fast.pool.exchange.webdataset import LARGEST_LABEL, Sample, find_samples, read_samples


def import_pool(source: Path, folder: Path, *, image_size: Size | None = None) -> int:
    """Write the images of `source` as a pool into `folder`, which must not hold one; returns how many.

    `source`: a folder of images, `<class>/*.png` or without classes (what the released codes write: labels are then
    -1), WebDataset shards (a tar or a folder of them), .npz or .safetensors with `images` (N, H, W, C) or (N, H, W)
    uint8 and perhaps `labels` and others (N, ...). `image_size` scales pictures to it, whatever their shape.
    Raises UserError, and leaves no pool, for a source that is not there, empty, damaged or of mixed sizes.
    """
    if image_size is not None and ImageSize.of(image_size).short < 1:
        raise UserError(f"--image-size {ImageSize.of(image_size).flag}: choose 1 or more")
    most, batches = _reader(source)(source, image_size)
    try:
        first = next(batches)
    except StopIteration:
        raise UserError(f"import {source}: holds no images; expected *.png, *.tar, .npz or .safetensors") from None
    with _all_or_nothing(folder):
        journal = Journal(folder, capacity=most)
        try:
            journal.append(first)
            for batch in batches:
                if batch["images"].shape[1:] != first["images"].shape[1:]:
                    raise _mixed(source, batch["images"], first["images"])
                journal.append(batch)
            return journal.flush()
        finally:
            journal.close()


@contextlib.contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    """Where no pool comes of it, take away what was written for it."""
    was_there = folder.exists()
    try:
        yield
    except BaseException:
        if folder.is_dir() and not any((folder / name).exists() for name in (MANIFEST, COPY)):
            for file in (*folder.glob("segment-*.bin"), folder / "lock"):
                file.unlink(missing_ok=True)
            if not was_there and not any(folder.iterdir()):
                folder.rmdir()
        raise


Reader = Callable[[Path, Size | None], tuple[int, Iterator[Batch]]]
"""source and image size -> how many images there are at most, and batches of them"""


def _reader(source: Path) -> Reader:
    if not source.exists():
        raise UserError(f"import {source}: no such folder or file")
    if source.is_dir():
        return _read_folder
    if is_tar(source):
        return lambda shard, image_size: _read_shards(source, [shard], image_size)
    readers = {".npz": read_npz, ".safetensors": read_safetensors}
    if source.suffix not in readers:
        raise UserError(f"import {source}: expected a folder, .tar, .npz or .safetensors")
    return lambda file, _: readers[file.suffix](file)


def _read_folder(source: Path, image_size: Size | None) -> tuple[int, Iterator[Batch]]:
    what = f"import {source}"
    tree = folder_tree(source, what)
    shards = {name for name in tree.files if is_tar(Path(name)) and not is_hidden(name)}
    names = pictures(Tree({name: tree.files[name] for name in tree.files if name not in shards}, set()), what)
    if shards and names:
        raise UserError(f"{what}: holds {len(shards)} tars and {len(names):,} pictures; import them one by one")
    if shards:
        return _read_shards(source, [source / name for name in sorted(shards)], image_size)
    names.sort(key=lambda name: PurePosixPath(name).parts)
    return len(names), _read_pictures(source, names, _labels(names, tree, what), image_size)


def _labels(names: Sequence[str], tree: Tree, what: str) -> list[int]:
    """The label of each picture: its folder's number, if all are numbers, as `pool export` names them; else its place
    among the sorted names. -1 in the folder `unlabelled`, and where there are no folders.
    """
    parents = [PurePosixPath(name).parent.as_posix() for name in names]
    folders = sorted({*parents} - {".", UNLABELLED}, key=lambda folder: (class_name(folder), folder))
    if not folders:
        return [-1] * len(names)
    if "." in parents:
        raise UserError(f"{what}: {printable(names[parents.index('.')])} lies in no class folder, others do")
    shown = [class_name(folder) for folder in folders]
    if len(set(shown)) != len(shown):
        raise UserError(f"{what}: two folders are called {max(shown, key=shown.count)}, in different code points")
    if splits := {PurePosixPath(folder).parts[0].lower() for folder in folders} & {"train", "test", "val"}:
        raise UserError(f"{what}: holds splits ({', '.join(sorted(splits))}), no classes; import one of them")
    last = [PurePosixPath(folder).name for folder in folders]
    if all(name.isascii() and name.isdigit() for name in last):
        numbers = list(map(int, last))
        if len(set(numbers)) != len(numbers) or max(numbers) > LARGEST_LABEL:
            raise UserError(f"{what}: folders {', '.join(shown[:3])}, ... are no distinct class numbers")
    else:
        numbers = list(range(len(folders)))
        _check_filled(tree, folders, what)
        some = ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
        note(f"{printable(what)}: labels 0 to {numbers[-1]} are the folders in their order, {some}")
    known = dict(zip(folders, numbers, strict=True))
    return [known.get(parent, -1) for parent in parents]


def _check_filled(tree: Tree, folders: Sequence[str], what: str) -> None:
    filled = {
        above.as_posix() for folder in folders for above in (PurePosixPath(folder), *PurePosixPath(folder).parents)
    }
    for folder in sorted(tree.folders - filled - {UNLABELLED}):
        if not is_hidden(folder):
            raise UserError(
                f"{what}: no pictures in the folder {printable(folder)}, which would shift labels; remove it"
            )


def _read_pictures(
    source: Path, names: Sequence[str], labels: Sequence[int], image_size: Size | None
) -> Iterator[Batch]:
    reader = PictureReader(None)
    for start in range(0, len(names), BATCH):
        chunk = names[start : start + BATCH]
        images = [_decode(reader, source / name, source / name, image_size) for name in chunk]
        yield {"images": _stack(source, images), "labels": torch.tensor(labels[start : start + BATCH])}
    reader.report(f"import {source}")


def _read_shards(source: Path, shards: Sequence[Path], image_size: Size | None) -> tuple[int, Iterator[Batch]]:
    samples = find_samples(shards, source)
    return sum(map(len, samples.values())), _read_samples(source, samples, image_size)


def _read_samples(source: Path, samples: Mapping[Path, Sequence[Sample]], image_size: Size | None) -> Iterator[Batch]:
    reader = PictureReader(None)
    pending: list[tuple[Tensor, int]] = []
    for shard, found in samples.items():
        for name, content, label in read_samples(shard, found):
            pending.append((_decode(reader, shard / name, content, image_size), label))
            if len(pending) == BATCH:
                yield _labelled(source, pending)
                pending = []
    if pending:
        yield _labelled(source, pending)
    reader.report(f"import {source}")


def _decode(reader: PictureReader, path: Path, content: bytes | Path, image_size: Size | None) -> Tensor:
    what = printable(f"import {path}:")
    with opened(content, what) as file:
        if is_deep(file):  # the pool holds bytes, and which eight bits were meant is not ours to say
            raise UserError(f"{what} cannot be decoded (mode {file.mode}: more than 8 bits a channel)")
    picture = reader.read(content, what)
    if image_size is not None:
        height, width = ImageSize.of(image_size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)  # a copy where it has that size
    pixels = torch.from_numpy(np.array(picture))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _labelled(source: Path, pending: list[tuple[Tensor, int]]) -> Batch:
    return {
        "images": _stack(source, [pixels for pixels, _ in pending]),
        "labels": torch.tensor([label for _, label in pending]),
    }


def _stack(source: Path, pictures: list[Tensor]) -> Tensor:
    for picture in pictures:
        if picture.shape != pictures[0].shape:
            raise _mixed(source, picture[None], pictures[0][None])
    return torch.stack(pictures)


def _mixed(source: Path, found: Tensor, first: Tensor) -> UserError:
    sizes = " and ".join("x".join(map(str, images.shape[1:])) for images in (first, found))
    alike = found.shape[3] == first.shape[3]
    hint = "--image-size scales them alike" if alike else "some are grey: save them all in colour"
    return UserError(f"import {source}: images of {sizes}; {hint}")
