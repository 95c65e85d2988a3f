"""CIFAR-10 and CIFAR-100 as their authors distribute them, torchvision's files: pickled rows of 3 x 32 x 32 bytes."""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfkd_fast.class_folders import Split
from dfkd_fast.errors import UserError, one_of


class _Layout(NamedTuple):
    """Names of files in the folder and of entries in the files."""

    folder: str
    files: dict[Split, tuple[str, ...]]
    labels: str
    meta: str
    class_names: str


_LAYOUTS = (
    _Layout(
        folder="cifar-10-batches-py",
        files={"train": tuple(f"data_batch_{index}" for index in range(1, 6)), "test": ("test_batch",)},
        labels="labels",
        meta="batches.meta",
        class_names="label_names",
    ),
    _Layout(
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        labels="fine_labels",
        meta="meta",
        class_names="fine_label_names",
    ),
)


class CifarFolder(NamedTuple):
    """A folder that holds one of the two data sets."""

    path: Path
    layout: _Layout

    def read(self, split: Split, *, flag: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Images (N, 32, 32, 3) uint8, labels (N,) int64 and class names. Raises UserError for damaged files."""
        batches = [_read(self.path / file, flag) for file in self.layout.files[split]]
        meta = self.path / self.layout.meta
        try:
            rows = torch.from_numpy(np.concatenate([batch["data"] for batch in batches]))
            images = rows.view(-1, 3, 32, 32).permute(0, 2, 3, 1).contiguous()
            labels = torch.tensor([label for batch in batches for label in batch[self.layout.labels]])
            class_names = tuple(_read(meta, flag)[self.layout.class_names])
        except KeyError as error:
            raise UserError(f"{flag} {self.path}: not torchvision's CIFAR files (no entry {error})") from error
        except (TypeError, ValueError, RuntimeError) as error:  # entries of another kind or shape
            raise UserError(f"{flag} {self.path}: damaged CIFAR files ({error})") from error
        if len(labels) != len(images):
            raise UserError(f"{flag} {self.path}: damaged CIFAR files ({len(images)} images, {len(labels)} labels)")
        return images, labels, class_names


def find_cifar(path: Path, *, flag: str) -> CifarFolder | None:
    """The data set in a folder, or in the folder that torchvision makes below it; None where there is none."""
    found = [
        CifarFolder(folder, layout)
        for layout in _LAYOUTS
        for folder in (path, path / layout.folder)
        if all((folder / file).is_file() for file in (layout.meta, *layout.files["test"]))
    ]
    if len(found) > 1:
        raise UserError(f"{flag} {path}: holds two data sets; choose {one_of(str(folder.path) for folder in found)}")
    return found[0] if found else None


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # as numpy 1 wrote it
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, text and numpy arrays; a pickle that asks for anything else is refused before it runs."""

    def find_class(self, module: str, name: str) -> Any:
        """The allowed callable of that name."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return _ALLOWED[module, name]


def _read(path: Path, flag: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except Exception as error:  # bytes that are no such file can make an unpickler fail in any way
        raise UserError(f"{flag} {path}: not one of torchvision's CIFAR files ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{flag} {path}: not one of torchvision's CIFAR files (a {type(content).__name__})")
    return content
