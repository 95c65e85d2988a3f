"""Real images for the methods that are not data-free in the strict sense: `--collected`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd_fast.config.train import TrainConfig
from dfkd_fast.data.class_order import stated_order
from dfkd_fast.data.files import decode
from dfkd_fast.data.splits import ImageSet, find_pictures, holds_pictures, images_digest, load_split
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.files.image_rows import ImageRows
from dfkd_fast.files.pictures import picture_channels
from dfkd_fast.messages.notes import note
from dfkd_fast.methods.base import CollectedImages, Method
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.training.evaluate import Expected, S, as_expected, check_classes, check_fit
from dfkd_fast.training.real_images.collected_file import rows_on_disk

_FLAG = "--collected"


@dataclass(frozen=True)
class Collected:
    """What was collected, decoded, in memory or in a file."""

    name: str
    """the source's"""
    images: Tensor | ImageRows = field(repr=False)
    """(N, H, W, C) uint8"""
    labels: Tensor = field(repr=False)
    """(N,) int64, in the teacher's order"""
    digest: str
    """hash of images, labels and class names"""

    def __len__(self) -> int:
        return len(self.labels)


def check_collected(config: TrainConfig, method: type[Method]) -> None:
    """Raise UserError where the method needs real images and `--collected` names none, or the other way round."""
    source = config.collected
    if not method.needs.real_images:
        if source is not None:
            raise UserError(f"--collected {source}: {config.method_name} is data-free and takes no real images")
    elif source is None:
        raise UserError(
            f"--collected: missing; {config.method_name} is not strictly data-free, it also learns from real images: "
            "choose digits or their path"
        )
    elif source != "digits" and not Path(source).exists():
        raise UserError(f"--collected {source}: no such folder or file; choose digits or a path")


def load_collected(config: TrainConfig, method: type[Method], info: ModelInfo) -> Collected | None:
    """The images that `--collected` and `--collected-share` name, as the teacher `info` sees images; None for a method
    without.

    Of each class its share, at least one image, and the same for every seed: a collection is made once. Of files only
    those are decoded, and above `--collected-memory` not into memory. Raises UserError as `check_collected` does, and
    for images that do not fit the teacher.
    """
    check_collected(config, method)
    source = config.collected
    if source is None:
        return None
    if holds_pictures(source, _FLAG):
        return _pictures(config, source, info)
    how: dict[str, Any] = {"image_size": info.image_size, "interpolation": info.interpolation}
    loaded = load_split(source, "train", channels=info.in_chans, flag=_FLAG, **how)
    found = _said(as_expected(loaded, info, stated_order(config.class_order), flag=_FLAG))
    check_fit(found, info, _FLAG)
    return _arrays(config, found)


def _said(expected: Expected[S]) -> S:
    """The images, after a word on how their classes were read."""
    for line in expected.notes:
        note(line)
    return expected.images


def _arrays(config: TrainConfig, found: ImageSet) -> Collected:
    """Of a source that is decoded as it lies."""
    rows = _share(found.labels, found.num_classes, config.collected_share)
    images, labels = found.images[rows], found.labels[rows]
    if images.nbytes > config.collected_memory * 2**30:
        size = f"{images.nbytes / 2**30:.1f} GiB"
        note(f"{_FLAG} {found.name}: {size} in memory, above --collected-memory: only image files are kept out of it")
    whole = len(rows) == len(found)
    digest = found.digest if whole else images_digest([images], tuple(images.shape), labels, found.class_names)
    return Collected(found.name, images, labels, digest)


def _pictures(config: TrainConfig, source: str, info: ModelInfo) -> Collected:
    """Of encoded files, the share of which is taken before any is decoded."""
    listed = find_pictures(source, "train", flag=_FLAG)
    files = _said(as_expected(listed, info, stated_order(config.class_order), flag=_FLAG))
    check_classes(files, info, _FLAG)
    labels = torch.tensor(files.labels)
    rows = _share(labels, len(files.class_names), config.collected_share)
    labels, chosen, name = labels[rows], rows.tolist(), Path(source).resolve().name.partition(".")[0]
    shape = (len(rows), *info.image_size, info.in_chans)
    form: dict[str, Any] = {"image_size": info.image_size, "interpolation": info.interpolation}
    form |= {"channels": picture_channels(info.in_chans, f"{_FLAG} {source}"), "flag": _FLAG}
    if torch.Size(shape).numel() > config.collected_memory * 2**30:
        return Collected(name, *rows_on_disk(files, chosen, shape, form, labels=labels, memory=config.collected_memory))
    images = decode(files, chosen, **form)
    return Collected(name, images, labels, images_digest([images], shape, labels, files.class_names))


def _share(labels: Tensor, num_classes: int, share: float) -> Tensor:
    """Rows (M,) int64, in their order: a share of each class."""
    if share == 1:
        return torch.arange(len(labels))
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for label in range(num_classes):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[: max(1, round(share * len(members)))])
    return torch.cat(chosen).sort().values


def rank_part(collected: Collected | None, info: ModelInfo, runtime: Runtime) -> CollectedImages | None:
    """This rank's part of them, on the device unless they are in a file; parts are equally large, so that up to
    world_size - 1 are left out.

    Raises UserError where they are fewer than the ranks.
    """
    if collected is None:
        return None
    count = len(collected) // runtime.world_size
    if not count:
        raise UserError(f"--collected {collected.name}: {len(collected)} images, fewer than the processes")
    first, end, step = runtime.rank, count * runtime.world_size, runtime.world_size
    labels = collected.labels[first:end:step].to(runtime.device)
    if isinstance(collected.images, ImageRows):
        return CollectedImages(collected.images.part(range(first, end, step)), labels)
    return CollectedImages(collected.images[first:end:step].to(runtime.device), labels)
