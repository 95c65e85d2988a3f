"""A pool from images that another program wrote."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.pictures import PictureReader, opened
from dfkd_fast.pool.exports import UNLABELLED
from dfkd_fast.pool.journal import Journal

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
BATCH = 256

Batch = dict[str, Tensor]


def import_pool(source: Path, folder: Path, *, image_size: int | None = None) -> int:
    """Write the images of `source` as a pool into `folder`, which must not hold one; returns how many.

    `source`: a folder of images, `<class>/*.png` or without classes (what the released codes write: labels are then
    -1), WebDataset shards (a .tar or a folder of them), .npz or .safetensors with `images` (N, H, W, C) uint8 and
    perhaps `labels` and others (N, ...). `image_size` scales pictures to a square of that side.
    Raises UserError for a source that is not there, empty, damaged or of mixed sizes.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size {image_size}: choose 1 or more")
    most, batches = _reader(source)(source, image_size)
    try:
        first = next(batches)
    except StopIteration:
        raise UserError(f"import {source}: holds no images; expected *.png, *.tar, .npz or .safetensors") from None
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


Reader = Callable[[Path, int | None], tuple[int, Iterator[Batch]]]
"""source and image size -> an upper bound of the number of images, and batches of them"""


def _reader(source: Path) -> Reader:
    if not source.exists():
        raise UserError(f"import {source}: no such folder or file")
    if source.is_dir():
        return _read_shards if any(source.glob("*.tar")) else _read_folder
    readers = {".tar": _read_shards, ".npz": _read_npz, ".safetensors": _read_safetensors}
    if source.suffix not in readers:
        raise UserError(f"import {source}: expected a folder, .tar, .npz or .safetensors")
    return readers[source.suffix]


def _read_folder(source: Path, image_size: int | None) -> tuple[int, Iterator[Batch]]:
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in ENDINGS)
    return len(paths), _read_pictures(source, paths, image_size)


def _read_pictures(source: Path, paths: list[Path], image_size: int | None) -> Iterator[Batch]:
    classes = sorted({path.parent for path in paths} - {source, source / UNLABELLED})
    labels = {folder: label for label, folder in enumerate(classes)}
    numbered = all(folder.name.isdigit() for folder in classes)  # as `pool export` names them
    for start in range(0, len(paths), BATCH):
        chunk = paths[start : start + BATCH]
        pictures = [_decode(path, path.read_bytes(), image_size) for path in chunk]
        known = [
            int(path.parent.name) if numbered and path.parent in labels else labels.get(path.parent, -1)
            for path in chunk
        ]
        yield {"images": _stack(source, pictures), "labels": torch.tensor(known)}


def _read_shards(source: Path, image_size: int | None) -> tuple[int, Iterator[Batch]]:
    shards = sorted(source.glob("*.tar")) if source.is_dir() else [source]
    blocks = sum(shard.stat().st_size for shard in shards) // tarfile.BLOCKSIZE
    return blocks // 2, _read_members(source, shards, image_size)  # a member is a block of header and one of content


def _read_members(source: Path, shards: list[Path], image_size: int | None) -> Iterator[Batch]:
    pending: list[tuple[Tensor, int]] = []
    for shard in shards:
        for parts in _samples(shard):
            picture = next((name for name in parts if name.lower().endswith(ENDINGS)), None)
            if picture is not None:
                pending.append((_decode(shard / picture, parts[picture], image_size), _class(shard, parts)))
            if len(pending) == BATCH:
                yield _labelled(source, pending)
                pending = []
    if pending:
        yield _labelled(source, pending)


def _samples(shard: Path) -> Iterator[dict[str, bytes]]:
    """The files of one sample after another: neighbours in the tar whose names agree up to the first dot."""
    key: str | None = None
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                stem, _, ending = member.name.partition(".")
                if stem != key and parts:
                    yield parts
                    parts = {}
                key = stem
                if (file := tar.extractfile(member)) is not None:
                    parts[f".{ending}"] = file.read()
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends early")  # which the module itself overlooks
    except (tarfile.TarError, EOFError) as error:
        why = str(error).partition("\n")[0].rstrip(":")  # each way to open it that failed has a line
        raise UserError(f"import {shard}: damaged ({why})") from None
    if parts:
        yield parts


def _read_npz(source: Path, image_size: int | None) -> tuple[int, Iterator[Batch]]:
    try:
        with np.load(source) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"import {source}: cannot be read ({error})") from None
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    return _cut(source, shapes, lambda name, a, b: arrays[name][a:b])


def _read_safetensors(source: Path, image_size: int | None) -> tuple[int, Iterator[Batch]]:
    try:
        file = safe_open(source, "pt")
    except SafetensorError as error:
        raise UserError(f"import {source}: cannot be read ({error})") from None
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    shapes = {name: list(part.get_shape()) for name, part in slices.items()}
    return _cut(source, shapes, lambda name, a, b: slices[name][a:b])


def _cut(
    source: Path, shapes: dict[str, list[int]], part: Callable[[str, int, int], Tensor]
) -> tuple[int, Iterator[Batch]]:
    count = shapes["images"][0] if shapes.get("images") else 0
    for name, shape in shapes.items() if count else ():
        if shape[:1] != [count] or (name == "labels" and len(shape) > 1):
            raise UserError(f"import {source}: `{name}` is {shape}, for {count} images; expected one for each")
    return count, _batches(source, count, list(shapes), part)


def _batches(source: Path, count: int, names: list[str], part: Callable[[str, int, int], Tensor]) -> Iterator[Batch]:
    for start in range(0, count, BATCH):
        batch = {name: part(name, start, start + BATCH).contiguous() for name in names}
        images, labels = batch["images"], batch.get("labels", torch.full((len(batch["images"]),), -1))
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise UserError(f"import {source}: `images` must be uint8 (N, H, W, C), not {images.dtype}")
        if labels.is_floating_point() or labels.is_complex():
            raise UserError(f"import {source}: `labels` must be whole numbers, not {labels.dtype}")
        yield {**batch, "labels": labels.long()}


def _decode(path: Path, content: bytes, image_size: int | None) -> Tensor:
    what, reader = f"import {path}:", PictureReader(None)
    with opened(content, what) as file:
        if file.mode[0] in "IF":  # the pool holds bytes, and which eight bits were meant is not ours to say
            raise UserError(f"{what} cannot be decoded (mode {file.mode}: more than 8 bits a channel)")
    picture = reader.read(content, what)
    if image_size is not None and picture.size != (image_size, image_size):
        picture = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _class(shard: Path, parts: Mapping[str, bytes]) -> int:
    text = parts.get(".cls", b"-1")
    try:
        return int(text)
    except ValueError:
        raise UserError(f"import {shard}: class {text[:40]!r} is not a number") from None


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
