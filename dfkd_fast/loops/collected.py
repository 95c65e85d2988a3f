"""Real images for the methods that are not data-free in the strict sense: `--collected`."""

from __future__ import annotations

from dataclasses import replace

import torch

from dfkd_fast.config import TrainConfig
from dfkd_fast.data import ImageSet, load_split
from dfkd_fast.errors import UserError
from dfkd_fast.image_stream import LabelledImages
from dfkd_fast.loops.evaluate import check_fit
from dfkd_fast.methods.base import CollectedImages, Method
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.runtime import Runtime


def load_collected(config: TrainConfig, method: type[Method], test: LabelledImages | None) -> ImageSet | None:
    """The images that `--collected` and `--collected-share` name; None for a method without.

    Of each class its share, at least one image, and the same for every seed: a collection is made once. Raises
    UserError where the method needs them and there are none, or the other way round.
    """
    share, source = config.collected_share, config.collected
    if not method.needs_data:
        if source is not None:
            raise UserError(f"--collected {source}: {config.method_name} is data-free and takes no real images")
        return None
    if source is None:
        raise UserError(
            f"--collected: missing; {config.method_name} is not strictly data-free, it also learns from real images: "
            "choose digits or their path"
        )
    size = config.image_size or (test.image_size if test is not None else None)
    found = load_split(source, "train", image_size=size, flag="--collected")
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
