"""A pool as files that other programs read: image folder, WebDataset shards, .npz, .safetensors.

The pool is read block by block and never all in memory.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.pool.disk.files import PoolFiles, as_bytes

SHARD = 10_000
"""images in one WebDataset shard"""
UNLABELLED = "unlabelled"
"""folder of images whose class nobody knows"""

DTYPES = {
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
"""what a pool's fields can be, and what safetensors calls it"""


def write_folder(files: PoolFiles, target: Path, start: int, stop: int) -> None:
    """`target/<class>/<index>.png` for the images number `start` to `stop`."""
    _check_pictures(files, target)
    for index, label, fields in images_of(files, start, stop):
        folder = target / (f"{label:05d}" if label >= 0 else UNLABELLED)
        folder.mkdir(parents=True, exist_ok=True)
        _picture(fields["images"]).save(folder / f"{index:08d}.png")


def write_shards(files: PoolFiles, target: Path, start: int, stop: int) -> None:
    """WebDataset shards `<name>-000000.tar`, ...: of each image `<index>.png`, `<index>.cls`, `<index>.<extra>.npy`."""
    _check_pictures(files, target)
    for number, first in enumerate(range(start, stop, SHARD)):
        with tarfile.open(target.with_name(f"{target.stem}-{number:06d}.tar"), "w") as tar:
            for index, label, fields in images_of(files, first, min(first + SHARD, stop)):
                add_member(tar, f"{index:08d}.png", png_bytes(fields["images"]))
                add_member(tar, f"{index:08d}.cls", str(label).encode())
                for name in fields.keys() - {"images", "labels"}:
                    file = io.BytesIO()
                    np.save(file, _array(fields[name]))
                    add_member(tar, f"{index:08d}.{name}.npy", file.getvalue())


def write_npz(files: PoolFiles, target: Path, start: int, stop: int) -> None:
    """One array for each field, (N, ...). numpy has no bfloat16: such an extra becomes float32."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, field in files.manifest.layout.fields.items():
            dtype = np.dtype("float32" if field.dtype == "bfloat16" else field.dtype)
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_2_0(file, {**header, "shape": (stop - start, *field.shape)})
                for values in _column(files, name, start, stop):
                    file.write(_array(values).astype(dtype).data)


def write_safetensors(files: PoolFiles, target: Path, start: int, stop: int) -> None:
    """One tensor for each field, (N, ...)."""
    fields, count = files.manifest.layout.fields, stop - start
    header, offset = {}, 0
    for name, field in fields.items():
        end = offset + count * field.nbytes
        header[name] = {
            "dtype": DTYPES[field.dtype],
            "shape": [count, *field.shape],
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in fields:
            for values in _column(files, name, start, stop):
                file.write(as_bytes(values))


Writer = Callable[[PoolFiles, Path, int, int], None]
WRITERS: dict[str, Writer] = {
    ".tar": write_shards,
    ".npz": write_npz,
    ".safetensors": write_safetensors,
    "": write_folder,
}
"""by the ending of the target; no ending: a folder"""


def images_of(files: PoolFiles, start: int, stop: int) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """Index, label and fields of the images number `start` to `stop`."""
    for first, block in files.read(start, stop):
        for row, label in enumerate(block["labels"].tolist()):
            yield first + row, label, {name: values[row] for name, values in block.items()}


def _column(files: PoolFiles, name: str, start: int, stop: int) -> Iterator[Tensor]:
    for _, block in files.read(start, stop, [name]):
        yield block[name]


def _check_pictures(files: PoolFiles, target: Path) -> None:
    """Raise UserError where the images are neither grey nor RGB: then PNG does not say what their channels are."""
    channels = files.manifest.layout.fields["images"].shape[-1]
    if channels not in (1, 3):
        name = target.name.removesuffix(".tar")
        raise UserError(
            f"export {target.name}: PNG has 1 or 3 channels, these images have {channels}; "
            f"choose {name}.npz or {name}.safetensors"
        )


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.squeeze(-1).numpy() if pixels.shape[-1] == 1 else pixels.numpy())


def _array(values: Tensor) -> np.ndarray:
    try:
        return values.numpy()
    except TypeError:  # bfloat16
        return values.float().numpy()


def png_bytes(pixels: Tensor) -> bytes:
    """An image (H, W, 1 or 3) uint8 as the content of a PNG file."""
    file = io.BytesIO()
    _picture(pixels).save(file, "png")
    return file.getvalue()


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar, with no date or owner: equal files make equal tars."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
