"""Images and their labels out of arrays in .npz and .safetensors files, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.files.arrays import NpzFile, are_images
from dfkd_fast.messages.notes import printable
from dfkd_fast.pool.exchange.exports import DTYPES
from dfkd_fast.pool.exchange.webdataset import LARGEST_LABEL

BATCH = 256

Batch = dict[str, Tensor]


def read_npz(source: Path) -> tuple[int, Iterator[Batch]]:
    """Of a .npz file: how many images it has, and batches of them, read as they are asked for. Raises UserError for
    whatever is no pool, and for arrays that are not as large as they claim.
    """
    file = NpzFile(source, f"import {source}")
    return _cut(source, file.shapes, lambda name, a, b: torch.from_numpy(file.next_rows(name, b - a)))


def read_safetensors(source: Path) -> tuple[int, Iterator[Batch]]:
    """The same of a .safetensors file."""
    try:
        file = safe_open(source, "pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except Exception as error:  # damaged headers make it fail in any way
        raise UserError(f"import {source}: cannot be read ({printable(error)})") from None

    def part(name: str, a: int, b: int) -> Tensor:
        try:
            return slices[name][a:b]
        except Exception as error:
            raise UserError(f"import {source}: `{printable(name)}` cannot be read ({printable(error)})") from None

    return _cut(source, shapes, part)


def _cut(
    source: Path, shapes: Mapping[str, tuple[int, ...]], part: Callable[[str, int, int], Tensor]
) -> tuple[int, Iterator[Batch]]:
    if "images" not in shapes:
        held = printable(", ".join(sorted(shapes)[:6]) or "nothing")
        raise UserError(f"import {source}: no array `images`; it holds {held}")
    shape = list(shapes["images"])
    count = shape[0] if shape else 0
    for name, other in shapes.items() if count else ():
        if other[:1] != (count,) or (name == "labels" and other[1:] not in ((), (1,))):
            raise UserError(f"import {source}: `{name}` is {list(other)}, for {count} images; expected one for each")
    if count and not are_images(shape):
        hint = "; (N, C, H, W) must be transposed" if len(shape) == 4 and shape[1] < min(shape[2:]) else ""
        raise UserError(f"import {source}: `images` is {shape}; expected (N, H, W, C) or (N, H, W){hint}")
    return count, _batches(source, count, list(shapes), part)


def _batches(source: Path, count: int, names: list[str], part: Callable[[str, int, int], Tensor]) -> Iterator[Batch]:
    for start in range(0, count, BATCH):
        batch = {name: part(name, start, min(start + BATCH, count)).contiguous() for name in names}
        images, labels = batch["images"], batch.get("labels", torch.full((len(batch["images"]),), -1))
        if images.dtype != torch.uint8:
            raise UserError(f"import {source}: `images` must be uint8 (N, H, W, C), not {images.dtype}")
        labels = _checked(labels, f"import {source}")
        for name, values in batch.items():
            kind = str(values.dtype).removeprefix("torch.")
            if name != "labels" and kind not in DTYPES:
                raise UserError(f"import {source}: `{printable(name)}` is {kind}; expected {', '.join(DTYPES)}")
        yield {**batch, "images": images if images.ndim == 4 else images[..., None], "labels": labels}


def _checked(labels: Tensor, what: str) -> Tensor:
    """Labels (N,) or (N, 1) of any whole numbers as (N,) int64."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"{what}: `labels` must be whole numbers, not {labels.dtype}")
    found = labels.flatten().long()
    least = -1 if labels.dtype.is_signed else 0
    if found.min() < least or found.max() > LARGEST_LABEL:
        raise UserError(f"{what}: `labels` from {found.min()} to {found.max()}; expected class numbers, -1 for none")
    return found
