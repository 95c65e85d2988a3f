"""Collected images that are too many for memory: decoded once into a file of the cache, found there by the next run."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from dfkd_fast.data.files import ImageFiles, decoded
from dfkd_fast.data.splits import images_digest
from dfkd_fast.errors import UserError
from dfkd_fast.files.cache import VARIABLE, cache_folder
from dfkd_fast.files.digests import of_json
from dfkd_fast.files.image_rows import ImageRows
from dfkd_fast.files.locks import Busy, lock_file
from dfkd_fast.files.write import make_folder, placed_file, write_file
from dfkd_fast.messages.notes import note
from dfkd_fast.messages.refusals import disk_error

_IN_FLIGHT = 64  # decoded at once, of which each may have millions of pixels
_PAUSE = 0.5


def rows_on_disk(
    files: ImageFiles,
    chosen: Sequence[int],
    shape: tuple[int, ...],
    form: Mapping[str, Any],
    *,
    labels: Tensor,
    memory: float,
) -> tuple[ImageRows, Tensor, str]:
    """The images at `chosen` (N,), decoded as `form` says to `shape` (N, H, W, C), in a file; their labels (N,); and
    the digest of both, which is computed anew from a file that was there: a damaged one is made again.

    Which file is decided by the names, sizes and times of the sources. Raises UserError where there is no room.
    """
    plain = {**form, "image_size": form["image_size"].written}
    named = {"shape": shape, "form": plain, "classes": files.class_names, "labels": labels.tolist()}
    key = of_json(named | {"files": [_stamp(files, index) for index in chosen]})[:16]
    path = cache_folder("collected") / f"{files.name}-{key}.uint8"
    size = f"{prod(shape) / 1e9:,.2f} GB"
    try:
        with _alone(path):
            found = _read(path, shape, labels, files.class_names)
            if found is None:
                _check_room(path.parent, prod(shape), f"{form['flag']} {files.source}: {size} of decoded images")
                _write(path, files, chosen, shape, form)
                found = ImageRows(path, shape), _digest(path, shape, labels, files.class_names)
                write_file(path.with_suffix(".json"), json.dumps({"shape": shape, "digest": found[1]}) + "\n")
    except OSError as error:
        raise disk_error(error, path.parent, flag=VARIABLE, go_on="the same command") from error
    note(f"{form['flag']}: {shape[0]:,} images, {size}, are in {path} (above --collected-memory {memory:g} GiB)")
    return found[0], labels, found[1]


def _stamp(files: ImageFiles, index: int) -> Any:
    """What tells a source file from another one under its name: size and time, for an archive the archive's."""
    place = files.places[index]
    there = (place if isinstance(place, Path) else files.source).stat()
    return [files.names[index], there.st_size, there.st_mtime_ns]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process makes the same file meanwhile; one that does is waited for. Raises OSError."""
    make_folder(path.parent)
    handle = None
    while handle is None:
        try:
            handle = lock_file(path.with_suffix(".lock"), "collected images", "decodes them; they are waited for")
        except Busy as busy:
            note(str(busy))
            time.sleep(_PAUSE)
    try:
        yield
    finally:
        os.close(handle)


def _read(
    path: Path, shape: tuple[int, ...], labels: Tensor, class_names: Sequence[str]
) -> tuple[ImageRows, str] | None:
    """The file and its digest, where it is there and what was written."""
    record = path.with_suffix(".json")
    if not (path.is_file() and record.is_file()):
        return None
    if path.stat().st_size == prod(shape):
        digest = _digest(path, shape, labels, class_names)
        if digest in record.read_text(encoding="utf-8", errors="replace"):
            return ImageRows(path, shape), digest
    note(f"collected images {path}: damaged; they are decoded anew")
    return None


def _write(
    path: Path, files: ImageFiles, chosen: Sequence[int], shape: tuple[int, ...], form: Mapping[str, Any]
) -> None:
    """Decode into a file that has its name when it is whole. Raises OSError."""
    path.with_suffix(".json").unlink(missing_ok=True)
    with placed_file(path) as place:
        for position, pixels in decoded(files, chosen, in_flight=_IN_FLIGHT, **form):
            place(pixels.tobytes(), position * prod(shape[1:]))


def _check_room(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{what}: {folder} has {free / 1e9:,.2f} GB free; name another folder by {VARIABLE}, or give a smaller "
            "--collected-share, or a larger --collected-memory"
        )


def _digest(path: Path, shape: tuple[int, ...], labels: Tensor, class_names: Sequence[str]) -> str:
    return images_digest(ImageRows(path, shape).chunks(), shape, labels, class_names)
