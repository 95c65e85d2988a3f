"""Sets of synthetic images as files: class folders, a tar of them, WebDataset shards, .npz, each with a manifest."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dfkd_fast.errors import UserError
from dfkd_fast.files.digests import of_file
from dfkd_fast.files.write import all_or_nothing
from dfkd_fast.messages.notes import printable
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.exchange.exports import add_member, images_of, png_bytes, write_npz, write_shards

SHARDS = "-%06d.tar"
"""how a name ends that stands for WebDataset shards"""
MANIFEST = "manifest.json"
_UNSAFE = re.compile(r'[\x00-\x1f/\\:*?"<>|]')


def check_target(out: Path) -> None:
    """Raise UserError for a name that says no kind of set, and for one that is there already."""
    if out.suffix not in ("", ".tar", ".npz"):
        raise UserError(f"--out {out}: choose a folder, NAME.tar, NAME.npz, or NAME{SHARDS} for WebDataset shards")
    if "%" in out.name and not out.name.endswith(SHARDS):
        raise UserError(f"--out {out}: WebDataset shards are NAME{SHARDS}")
    there = [out, _manifest(out), *out.parent.glob(out.name.replace("%06d", "[0-9]" * 6))]
    if found := next((path for path in there if path.exists()), None):
        raise UserError(f"--out {found}: is there already; choose another name")


def write_set(files: PoolFiles, out: Path, class_names: Sequence[str], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write a pool's images, and a manifest with what `about` says, folders by class and every file's SHA-256: all of
    it or nothing. Returns the manifest. Raises UserError for what the system refuses.
    """
    folders, count = folder_names(class_names), len(files)
    with all_or_nothing(out, "--out") as made:
        if out.suffix == ".npz":
            write_npz(files, made, 0, count)
        elif out.name.endswith(SHARDS):
            write_shards(files, made.with_name(out.name.replace(SHARDS, ".tar")), 0, count)
        elif out.suffix == ".tar":
            _write_tar(files, made, folders)
        else:
            _write_folders(files, made, folders)
        written = sorted(path for path in made.parent.rglob("*") if path.is_file())
        top = made if out.suffix == "" else made.parent
        hashes = {path.relative_to(top).as_posix(): of_file(path) for path in written}
        manifest = {**about, "class_names": list(class_names), "folders": folders, "per_class": _counts(files, folders)}
        manifest["files"] = hashes
        target = made / MANIFEST if out.suffix == "" else made.with_name(_manifest(out).name)
        target.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder for each class: its name, without what file systems do not take; its number in front where two would be
    the same.
    """
    plain = [_UNSAFE.sub("_", printable(name)).strip(" .") for name in class_names]
    is_clear = all(plain) and len({name.casefold() for name in plain}) == len(plain)
    return plain if is_clear else [f"{number:05d}-{name}".rstrip("-") for number, name in enumerate(plain)]


def _counts(files: PoolFiles, folders: Sequence[str]) -> list[int]:
    """Images of each class."""
    labels = [block["labels"].clone() for _, block in files.read(0, len(files), ["labels"])]
    return torch.cat(labels).bincount(minlength=len(folders)).tolist()


def _manifest(out: Path) -> Path:
    if out.suffix == "":
        return out / MANIFEST
    return out.with_name(out.name.replace(SHARDS, ".json") if out.name.endswith(SHARDS) else f"{out.name}.json")


def _write_folders(files: PoolFiles, target: Path, folders: Sequence[str]) -> None:
    for index, label, fields in images_of(files, 0, len(files)):
        folder = target / folders[label]
        folder.mkdir(parents=True, exist_ok=True)  # of classes that have images: readers refuse empty ones
        (folder / f"{index:08d}.png").write_bytes(png_bytes(fields["images"]))


def _write_tar(files: PoolFiles, target: Path, folders: Sequence[str]) -> None:
    with tarfile.open(target, "w") as tar:
        for index, label, fields in images_of(files, 0, len(files)):
            add_member(tar, f"{folders[label]}/{index:08d}.png", png_bytes(fields["images"]))
