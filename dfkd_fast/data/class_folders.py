"""Split and class of the files in a tree: `<split>/<class>/...` or `<class>/...`.

Folders above the splits or classes do not matter. Names are compared, and classes sorted, in Unicode's composed form
(NFC), so that what one system wrote agrees with another. tiny-imagenet-200 lists the classes of its validation images
in a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

from dfkd_fast.errors import UserError, one_of
from dfkd_fast.files.archives import Tree, read_places
from dfkd_fast.files.trees import PICTURE_SUFFIXES, class_name, contents_of, is_hidden, pictures, suffix_of
from dfkd_fast.messages.notes import note, printable

Split = Literal["train", "test"]
Parts = tuple[str, ...]

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
_SPLIT_OF = {folder: split for split, folders in SPLIT_FOLDERS.items() for folder in folders}
_ANNOTATIONS = "val_annotations.txt"


def classes_of(tree: Tree, source: Path, split: Split, what: str) -> dict[str, list[str]]:
    """The names of a split's pictures by class, both sorted.

    Raises UserError, beginning with `what`, where there are none, for pictures outside class folders, for classes that
    have none or that only one split has.
    """
    found = pictures(tree, what)
    if not found:
        inside = contents_of(Tree({f"x/{name}": place for name, place in tree.files.items()}, set()), "x")
        holds = "" if inside == "empty" else f"; it holds {inside}"
        raise UserError(f"{what}: no images in it; expected {split}/<class>/*.jpg or <class>/*.jpg{holds}")
    paths = _relabelled({tuple(name.split("/")): name for name in found}, tree, source, what)
    renamed = _composed(paths, what)
    prefix, paths = _below_split(renamed, split, what)
    by_class: dict[str, list[str]] = {}
    for path, name in paths.items():
        if len(path) < 2:
            raise UserError(
                f"{what}: {printable(name)} lies in no class folder; expected <class>/{printable(path[-1])}"
            )
        by_class.setdefault(path[0], []).append(name)
    _check_filled(tree, prefix, by_class, what)
    return {name: sorted(by_class[name]) for name in sorted(by_class)}


def _composed(paths: dict[Parts, str], what: str) -> dict[Parts, str]:
    """The same with the folders' names as `class_name` has them."""
    originals: dict[Parts, Parts] = {}
    folders = {path[:-1] for path in paths}
    composed = {folder: tuple(map(class_name, folder)) for folder in folders}
    for folder, shown in composed.items():
        for end in range(1, len(folder) + 1):
            if originals.setdefault(shown[:end], folder[:end]) != folder[:end]:
                both = "/".join(shown[:end])
                raise UserError(f"{what}: two folders are called {both}, in different code points; join them")
    ordered = sorted(originals)
    if ordered != sorted(originals, key=lambda shown: originals[shown]):
        note(
            f"{printable(what)}: names of folders are decomposed (NFD); classes are sorted by their composed form (NFC)"
        )
    return {(*composed[path[:-1]], path[-1]): name for path, name in paths.items()}


def _below_split(paths: dict[Parts, str], split: Split, what: str) -> tuple[Parts, dict[Parts, str]]:
    """Take off what stands above the classes: folders that all paths share, and the split's where there are splits."""
    prefix: Parts = ()
    while True:
        folders = {path[0] for path in paths if len(path) > 2 and path[0].lower() in _SPLIT_OF}
        if folders or len({path[0] for path in paths}) > 1 or any(len(path) < 3 for path in paths):
            break
        prefix = (*prefix, next(iter(paths))[0])
        paths = {path[1:]: name for path, name in paths.items()}
    if not folders:
        return prefix, paths
    classes = {folder: {path[1] for path in paths if path[0] == folder and len(path) > 2} for folder in folders}
    order = [folder for name in SPLIT_FOLDERS[split] for folder in sorted(folders) if folder.lower() == name]
    if not order:
        raise UserError(f"{what}: no {split} split, only {one_of(sorted(folders))}")
    # An unlabelled test folder is common beside a labelled val: the first that has the other split's classes is taken.
    counterparts = sorted(folders - set(order))
    wanted = [classes[folder] for folder in counterparts]
    agreeing = [folder for folder in order if not wanted or classes[folder] in wanted]
    if not agreeing:
        ours, theirs = classes[order[0]], classes[counterparts[0]]
        missing = ", ".join(sorted(ours ^ theirs)[:3])
        counts = f"{len(ours)} classes in {order[0]} but {len(theirs)} in {counterparts[0]}"
        raise UserError(f"{what}: {counts}; not in both: {missing}")
    chosen = agreeing[0]
    return (*prefix, chosen), {path[1:]: name for path, name in paths.items() if path[0] == chosen}


def _check_filled(tree: Tree, prefix: Parts, filled: Iterable[str], what: str) -> None:
    """A class folder without a picture would shift the labels of those behind it."""
    depth = len(prefix)
    folders = {PurePosixPath(name).parts: name for name in sorted(tree.folders) if not is_hidden(name)}
    below = {
        class_name(path[depth]): name
        for path, name in folders.items()
        if len(path) == depth + 1 and tuple(map(class_name, path[:depth])) == prefix
    }
    filled = set(filled)
    missing = sorted(name for name, folder in below.items() if name not in filled and not _has_pictures(tree, folder))
    if missing:
        shown = ", ".join(f"{name} ({contents_of(tree, below[name])})" for name in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        only = f"one class ({next(iter(filled))}); " if len(filled) == 1 else ""
        raise UserError(f"{what}: {only}class folders without images: {shown}{more}; fill or remove them")


def _has_pictures(tree: Tree, folder: str) -> bool:
    """As the folder `images` has, whose pictures a list has given to other classes."""
    inside = (name for name in tree.files if name.startswith(f"{folder}/") and not is_hidden(name))
    return any(suffix_of(name) in PICTURE_SUFFIXES for name in inside)


def _relabelled(paths: dict[Parts, str], tree: Tree, source: Path, what: str) -> dict[Parts, str]:
    """The same with pictures that a `val_annotations.txt` lists below their classes, not below `images`."""
    lists = [name for name in tree.files if PurePosixPath(name).name == _ANNOTATIONS and not is_hidden(name)]
    for name in lists:
        folder = (*PurePosixPath(name).parent.parts, "images")
        ((_, content),) = read_places(source, [tree.files[name]], what)
        text = content.read_bytes() if isinstance(content, Path) else content
        rows = [line.split("\t") for line in text.decode("utf-8", "replace").splitlines()]
        classes = {row[0]: row[1] for row in rows if len(row) > 1}
        moved: dict[Parts, str] = {}
        for path, picture in paths.items():
            if path[:-1] == folder:
                if path[-1] not in classes:
                    raise UserError(f"{what}: {printable(picture)} is not listed in {printable(name)}")
                path = (*folder[:-1], classes[path[-1]], path[-1])
            moved[path] = picture
        paths = moved
    return paths
