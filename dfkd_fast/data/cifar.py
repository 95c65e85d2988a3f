"""CIFAR-10 and CIFAR-100 as their authors distribute them, torchvision's files: pickled rows of 3 x 32 x 32 bytes.

torchvision's own reader unpickles whatever a file asks for, and unpacks archives beside itself; this one does neither.
"""

from __future__ import annotations

import codecs
import pickle
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfkd_fast.data.class_folders import Split
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.files.archives import Place, Tree, read_places, tar_tree
from dfkd_fast.files.trees import is_tar
from dfkd_fast.messages.notes import note, printable


class _Layout(NamedTuple):
    """Names of files in the folder and of entries in the files."""

    folder: str
    files: dict[Split, tuple[str, ...]]
    labels: str
    meta: str
    class_names: str
    usual_names: tuple[str, ...] = ()
    """the classes, where a meta file without names leaves no doubt"""


_LAYOUTS = (
    _Layout(
        folder="cifar-10-batches-py",
        files={"train": tuple(f"data_batch_{index}" for index in range(1, 6)), "test": ("test_batch",)},
        labels="labels",
        meta="batches.meta",
        class_names="label_names",
        usual_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    _Layout(
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        labels="fine_labels",
        meta="meta",
        class_names="fine_label_names",
    ),
)


class CifarFiles(NamedTuple):
    """A folder or archive that holds one of the two data sets."""

    source: Path
    layout: _Layout
    places: dict[str, Place]
    """where each of its files lies"""

    def read(self, split: Split, *, flag: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Images (N, 32, 32, 3) uint8, labels (N,) int64 and class names. Raises UserError for damaged files."""
        what, layout = f"{flag} {self.source}", self.layout
        names = (*layout.files[split], layout.meta)
        if missing := [name for name in names if name not in self.places]:
            raise UserError(f"{what}: not torchvision's CIFAR files (no {missing[0]})")
        contents = dict(read_places(self.source, [self.places[name] for name in names], what))
        *batches, meta = (_unpickled(contents[index], f"{what}: {name}") for index, name in enumerate(names))
        if not meta.get(layout.class_names) and layout.usual_names:
            note(f"{printable(what)}: {layout.meta} names no classes; taken: {', '.join(layout.usual_names)}")
            meta[layout.class_names] = layout.usual_names
        try:
            class_names = _checked_names(meta[layout.class_names])
            images = torch.cat([_checked_rows(batch["data"]) for batch in batches])
            labels = torch.cat([_checked_labels(batch[layout.labels], len(class_names)) for batch in batches])
        except KeyError as error:
            raise UserError(f"{what}: not torchvision's CIFAR files (no entry {error})") from error
        except (TypeError, ValueError) as error:  # entries of another kind or shape
            raise UserError(f"{what}: damaged CIFAR files ({printable(error)})") from error
        if len(labels) != len(images):
            raise UserError(f"{what}: damaged CIFAR files ({len(images)} images, {len(labels)} labels)")
        return images.view(-1, 3, 32, 32).permute(0, 2, 3, 1).contiguous(), labels, class_names


def find_cifar(path: Path, *, flag: str) -> CifarFiles | None:
    """The data set in a folder, or in the folder that torchvision makes below it, or in the archive of that name; None
    where there is none.
    """
    if is_tar(path) and path.is_file():
        if not path.name.lower().startswith("cifar-"):
            return None
        tree = tar_tree(path, f"{flag} {path}")
        known = [(layout, _places_below(tree, layout.folder)) for layout in _LAYOUTS]
    else:
        known = [
            (layout, {file.name: file for file in folder.iterdir() if file.is_file()})
            for layout in _LAYOUTS
            for folder in (path, path / layout.folder)
            if folder.is_dir()
        ]
    found = [
        CifarFiles(path, layout, places)
        for layout, places in known
        if all(file in places for file in (layout.meta, *layout.files["test"]))
    ]
    if len(found) > 1:
        held = [str(path / layout.folder) for _, layout, _ in found]
        raise UserError(f"{flag} {path}: holds two data sets; choose {one_of(held)}")
    return found[0] if found else None


def _places_below(tree: Tree, folder: str) -> dict[str, Place]:
    paths = {PurePosixPath(name): place for name, place in tree.files.items()}
    return {path.name: place for path, place in paths.items() if path.parent.name == folder}


def _checked_names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError("class names that are no text")
    if len(set(names)) != len(names):
        raise ValueError("two classes of one name")
    return tuple(names)


def _checked_rows(rows: Any) -> Tensor:
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape[1:] != (3 * 32 * 32,):
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise TypeError(f"`data` is {found}; expected uint8 (N, 3072)")
    return torch.from_numpy(np.ascontiguousarray(rows))


def _checked_labels(labels: Any, classes: int) -> Tensor:
    if not isinstance(labels, list | tuple | np.ndarray):
        raise TypeError(f"labels are {type(labels).__name__}")
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int | np.integer) or not 0 <= label < classes:
            raise ValueError(f"label {label!r:.40}; expected 0 to {classes - 1}")
    return torch.tensor([int(label) for label in labels], dtype=torch.int64)


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


def _unpickled(content: bytes | Path, what: str) -> dict[str, Any]:
    try:
        data = content.read_bytes() if isinstance(content, Path) else content
        found = _ArrayUnpickler(BytesIO(data), encoding="latin1").load()
    except Exception as error:  # bytes that are no such file can make an unpickler fail in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{what}: not one of torchvision's CIFAR files ({printable(reason)})") from error
    if not isinstance(found, dict):
        raise UserError(f"{what}: not one of torchvision's CIFAR files (a {type(found).__name__})")
    return found
