"""A library's facts about a network: its input, by the names of `ModelInfo`, and the published weights it means."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.messages.notes import note
from dfkd_fast.models.info import INTERPOLATIONS, Source
from dfkd_fast.models.torchvision_cpu import ensure_importable, imagenet_categories

_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}  # numbers of Pillow's filters


def timm_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's configuration of a network says; what we do not know is left out."""
    classes, interpolation = config["num_classes"], config.get("interpolation")
    imagenet = imagenet_categories()  # timm keeps the names of few networks
    return {
        "num_classes": classes,
        "image_size": ImageSize(*config["input_size"][-2:]),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": interpolation if interpolation in INTERPOLATIONS else None,
        "class_names": imagenet if classes == len(imagenet) else (),
    }


def values_of_built(model: nn.Module, name: str) -> Source:
    """What the library that a user's code built `model` with says of it; the network itself is asked, not its parts,
    around which the code may prepare images of its own.

    timm's networks carry their configuration. transformers' name the folder or repository of their processor, which is
    read; where it cannot be, a line that begins with `name` says so.
    """
    timm = getattr(model, "pretrained_cfg", None)
    if isinstance(timm, Mapping) and {"num_classes", "input_size", "mean", "std"} <= timm.keys():
        ensure_importable()
        return Source("timm's configuration", timm_values(timm))
    config = getattr(model, "config", None)
    place = getattr(config, "_name_or_path", None)
    if not type(model).__module__.startswith("transformers.") or not place or not isinstance(place, str):
        return Source("its code", {})
    return values_of_transformers(config, place, name)


def values_of_transformers(config: Any, place: str, name: str) -> Source:
    """What the image processor in a folder or repository says, and a network's configuration of its classes' names."""
    ensure_importable()
    transformers: Any = importlib.import_module("transformers")
    try:
        values = processor_values(transformers.AutoImageProcessor.from_pretrained(place).to_dict())
    except Exception as error:  # the library's: no such file, no connection, a processor that it does not know
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        note(f"{name}: the image processor of {place} cannot be read ({reason[:160]})")
        values = {}
    names = getattr(config, "id2label", None) or {}
    labels = tuple(str(names[key]) for key in sorted(names))
    made_up = all(label == f"LABEL_{index}" for index, label in enumerate(labels))
    return Source(f"the processor of {place}", {**values, "class_names": () if made_up else labels})


def processor_values(processor: Mapping[str, Any]) -> dict[str, Any]:
    """What a transformers image processor says; a size of which one side is open, or pixels that it does not take to
    [0, 1] before it normalises them, are left out: they have to be stated.
    """
    values: dict[str, Any] = {}
    scaled = processor.get("do_rescale", True) and math.isclose(processor.get("rescale_factor", 1 / 255), 1 / 255)
    if scaled and not processor.get("do_normalize", True):
        values.update(mean=(0.0,) * 3, std=(1.0,) * 3)
    elif scaled and processor.get("image_mean") and processor.get("image_std"):
        values.update(mean=tuple(processor["image_mean"]), std=tuple(processor["image_std"]))
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    if isinstance(size, int):
        values["image_size"] = ImageSize.of(size)
    elif isinstance(size, Mapping) and size.get("height") and size.get("width"):
        values["image_size"] = ImageSize(size["height"], size["width"])
    elif isinstance(size, Mapping) and size.get("shortest_edge"):
        values["image_size"] = ImageSize.of(size["shortest_edge"])
    values["interpolation"] = _PILLOW.get(processor.get("resample", -1))
    return values


def chosen_weights(published: Iterable[Any], choice: str, setting: str) -> Any:
    """The weights called `choice`; without one the first that were published.

    Those are what most papers distil from: a later recipe is another teacher. `published`: torchvision's enumeration
    of a network's weights. Raises UserError, which begins with `setting`, for a name that is not among them.
    """
    known = {weights.name: weights for weights in published}
    if choice and choice not in known:
        raise UserError(f"{setting}: torchvision has no such weights; choose {one_of(f'@{name}' for name in known)}")
    return known[choice] if choice else next(iter(known.values()))


def described_weights(published: Iterable[Any], chosen: Any) -> str:
    """Their name, published top-1 and the size that test images were scaled to, and which others there are."""
    others = [f"@{weights.name}{_top1(weights)}" for weights in published if weights is not chosen]
    also = f"; there is {one_of(others)}, too" if others else ""
    return f"torchvision's {chosen.name}{_top1(chosen, scaled=True)}{also}"


def _top1(weights: Any, *, scaled: bool = False) -> str:
    top1 = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    if top1 is None:
        return ""
    short_side = weights.transforms().resize_size[0]
    return f" ({top1:.2f} %, test images scaled to {short_side})" if scaled else f" ({top1:.2f} %)"
