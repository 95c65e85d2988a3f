"""Real images for the methods that are not data-free in the strict sense: `--collected`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dfkd_fast.class_order import stated_order
from dfkd_fast.config import TrainConfig
from dfkd_fast.data import ImageSet, load_split
from dfkd_fast.errors import UserError
from dfkd_fast.loops.evaluate import as_expected, check_fit, image_channels
from dfkd_fast.methods.base import CollectedImages, Method
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.runtime import Runtime


def check_collected(config: TrainConfig, method: type[Method]) -> None:
    """Raise UserError where the method needs real images and `--collected` names none, or the other way round."""
    source = config.collected
    if not method.needs_data:
        if source is not None:
            raise UserError(f"--collected {source}: {config.method_name} is data-free and takes no real images")
    elif source is None:
        raise UserError(
            f"--collected: missing; {config.method_name} is not strictly data-free, it also learns from real images: "
            "choose digits or their path"
        )
    elif source != "digits" and not Path(source).exists():
        raise UserError(f"--collected {source}: no such folder or file; choose digits or a path")


def load_collected(config: TrainConfig, method: type[Method], info: ModelInfo) -> ImageSet | None:
    """The images that `--collected` and `--collected-share` name, as the teacher `info` sees images; None for a method
    without.

    Of each class its share, at least one image, and the same for every seed: a collection is made once. Raises
    UserError as `check_collected` does.
    """
    check_collected(config, method)
    share, source = config.collected_share, config.collected
    if source is None:
        return None
    size, interpolation = info.image_size, info.interpolation
    found = load_split(
        source,
        "train",
        image_size=size,
        channels=image_channels(info),
        interpolation=interpolation,
        flag="--collected",
    )
    found = as_expected(found, info, stated_order(config.class_order), flag="--collected").images
    if share == 1:
        return found
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for label in range(found.num_classes):
        members = (found.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[: max(1, round(share * len(members)))])
    kept = torch.cat(chosen).sort().values
    return replace(found, images=found.images[kept], labels=found.labels[kept])


def rank_part(collected: ImageSet | None, info: ModelInfo, runtime: Runtime) -> CollectedImages | None:
    """This rank's part of them, on the device; parts are equally large, so that up to world_size - 1 are left out.

    Raises UserError where they do not fit the teacher, or are fewer than the ranks.
    """
    if collected is None:
        return None
    check_fit(collected, info, "--collected")
    count = len(collected) // runtime.world_size
    if not count:
        raise UserError(f"--collected {collected.name}: {len(collected)} images, fewer than the processes")
    mine = slice(runtime.rank, count * runtime.world_size, runtime.world_size)
    return CollectedImages(collected.images[mine].to(runtime.device), collected.labels[mine].to(runtime.device))
