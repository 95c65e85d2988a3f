"""Networks by name: ours, torchvision's and timm's, with what a caller must know about their input."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_fast.catalog import MODELS
from dfkd_fast.errors import UserError, one_of, unknown
from dfkd_fast.models.answers import settle_answer
from dfkd_fast.models.filling import fill
from dfkd_fast.models.header import read_header
from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_fast.models.vit import check_size, is_vit
from dfkd_fast.models.weights import Weights, read_weights


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a network expects and answers: images (B, in_chans, image_size, image_size) -> logits (B, num_classes)."""

    name: str
    """a name of `catalog.MODELS`, `tv:NAME` or `timm:NAME`"""
    num_classes: int
    """width of the classifier"""
    image_size: int
    """side of the square input in pixels"""
    mean: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    std: tuple[float, ...]
    """of each channel, for pixels in [0, 1]"""
    in_chans: int = 3
    """channels of the input"""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (C, H, W)."""
        return self.in_chans, self.image_size, self.image_size

    def blank(self, like: Tensor) -> Tensor:
        """One black image (1, in_chans, H, W), of the dtype and device of `like`: to see what a network hands out."""
        return like.new_zeros(1, *self.shape)


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What a caller asked for and what the weights file says of itself; None where neither says anything."""

    flag: str
    spec: str
    num_classes: int | None
    image_size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    pretrained: bool

    @property
    def name(self) -> str:
        """The name within its library."""
        return self.spec.partition(":")[2] or self.spec

    def info(self, **library: Any) -> ModelInfo:
        """The order completed by the library's own values; raises UserError for what nobody knows."""
        keys = ("num_classes", "image_size", "mean", "std")
        known: dict[str, Any] = {key: getattr(self, key) or library.get(key) for key in keys}
        absent = [key for key in keys if known[key] is None]
        if absent:
            raise UserError(
                f"{self.flag} {self.spec}: {', '.join(absent)} not known; give the data set, "
                f"or a {self.flag}-weights file that dfkd-fast wrote"
            )
        return ModelInfo(name=self.spec, in_chans=len(known["mean"]), **known)


def load_model(
    spec: str,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    weights: Path | None = None,
    weights_key: str | None = None,
    pretrained: bool = False,
    flag: str = "--teacher",
    weights_flag: str | None = None,
) -> tuple[nn.Module, ModelInfo]:
    """Build a network and fill it: from a file, else from its published weights if asked for, else at random.

    `spec` is a name of `catalog.MODELS`, `tv:NAME` (torchvision) or `timm:NAME`. An argument comes before what the
    header of a weights file written by dfkd-fast says, and that before the library's own configuration. `mean` has one
    entry for each input channel. The network is on the CPU, in float32 and training mode.

    `weights_key` chooses where a file holds several networks (models/filling.py).

    Raises UserError that names `flag` or `weights_flag` (`<flag>-weights`): for an unknown name, a value that is not to
    be had, weights that do not fit or cannot be read, and published weights that are missing, out of reach or made for
    other classes.
    `SPEC+sharedD` and `SPEC+sharedDxS` are students on a teacher's classifier (models/shared_classifier.py).
    """
    full, (spec, _, shared) = spec, spec.partition("+")
    stored = None if weights is None else read_weights(weights, flag=weights_flag or f"{flag}-weights")
    saved = {} if stored is None else saved_info(stored)
    order = _Order(
        flag=flag,
        spec=spec,
        num_classes=num_classes or saved.get("num_classes"),
        image_size=image_size or saved.get("image_size"),
        mean=mean or saved.get("mean"),
        std=std or saved.get("std"),
        pretrained=pretrained and weights is None,
    )
    library = spec.rpartition(":")[0]
    if library == "tv":
        model, info = _torchvision(order)
    elif library == "timm":
        model, info = _timm(order)
    elif spec in MODELS:
        model, info = _own(order)
    else:
        raise unknown(flag, spec, [*MODELS, "tv:NAME", "timm:NAME"])
    settle_answer(model, info.shape, info.num_classes, name=f"{flag} {spec}")
    if shared:
        from dfkd_fast.models.shared_classifier import SharedForm, share_classifier  # which is made of this file's

        model = share_classifier(model, SharedForm.parse(shared, f"{flag} {full}"), info)
        info = replace(info, name=full)
    if stored is not None:
        fill(model, stored, name=full, blank=info.blank(torch.zeros(())), key=weights_key)
    return model, info


def saved_info(stored: Weights) -> dict[str, Any]:
    """The ModelInfo in a file's header, as keyword arguments; empty for a file that others wrote."""
    return read_header(stored.metadata, f"{stored.flag} {stored.path}")


def _own(order: _Order) -> tuple[nn.Module, ModelInfo]:
    if order.pretrained:
        raise UserError(f"{order.flag} {order.spec}: has no published weights; give {order.flag}-weights")
    info = order.info()
    module, function = MODELS[order.spec][0].split(":")
    build = getattr(importlib.import_module(module), function)
    return build(info.num_classes, in_chans=info.in_chans, image_size=info.image_size), info


def _torchvision(order: _Order) -> tuple[nn.Module, ModelInfo]:
    ensure_importable()
    from torchvision import models

    names = models.list_models(module=models)
    if order.name not in names:
        raise _no_such(order, names, "torchvision")
    published = models.get_model_weights(order.name)
    # The first published weights are those that the papers distil from; a later recipe is another teacher.
    first = next(iter(published))
    preset = first.transforms()
    info = order.info(
        num_classes=len(first.meta["categories"]),
        image_size=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    if info.in_chans != 3:
        raise UserError(f"{order.flag} {order.spec}: takes images of 3 channels, not {info.in_chans}")
    if order.pretrained:
        _check_classes(order, len(first.meta["categories"]))
    weights = first if order.pretrained else None
    try:
        model = models.get_model(order.name, weights=weights, num_classes=info.num_classes)
    except OSError as error:
        raise _not_fetched(order, error) from error
    return model, info


def _timm(order: _Order) -> tuple[nn.Module, ModelInfo]:
    ensure_importable()
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise UserError(f'{order.flag} {order.spec}: needs timm; pip install "dfkd-fast[timm]"') from error

    architectures, tagged = timm.list_models(), timm.list_models(pretrained=True)
    if order.name not in (*architectures, *tagged):
        raise _no_such(order, [*architectures, *tagged], "timm")
    if order.pretrained and order.name not in (*tagged, *(name.partition(".")[0] for name in tagged)):
        raise UserError(f"{order.flag} {order.spec}: has no published weights; give {order.flag}-weights")
    config = timm.get_pretrained_cfg(order.name).to_dict()
    info = order.info(**config, image_size=config["input_size"][-1])
    if order.pretrained:
        _check_classes(order, config["num_classes"])
    sizes = {"num_classes": info.num_classes, "in_chans": info.in_chans}
    if config.get("fixed_input_size") and info.image_size != config["input_size"][-1]:
        sizes["img_size"] = info.image_size  # a transformer's grid; published position embeddings are resized to it
    try:
        model = timm.create_model(order.name, pretrained=order.pretrained, **sizes)
    except OSError as error:
        raise _not_fetched(order, error) from error
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # networks that only their own size fits
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{order.flag} {order.spec}: cannot be built for images of {info.image_size} pixels ({reason}); choose "
            f"--image-size {config['input_size'][-1]}, or another network"
        ) from error
    if "img_size" in sizes and is_vit(model):
        check_size(model, info.image_size, f"{order.flag} {order.spec}")
    return model, info


def _no_such(order: _Order, names: Iterable[str], library: str) -> UserError:
    """Libraries know too many names to list: the nearest ones instead."""
    prefix = order.spec.partition(":")[0]
    nearest = difflib.get_close_matches(order.name, list(names), n=3, cutoff=0.5)
    hint = f"did you mean {one_of(f'{prefix}:{name}' for name in nearest)}?" if nearest else "see its documentation"
    return UserError(f"{order.flag} {order.spec}: {library} has no classification network of that name; {hint}")


def _check_classes(order: _Order, published: int) -> None:
    if order.num_classes not in (None, published):
        raise UserError(
            f"{order.flag} {order.spec}: its published weights know {published} classes, not {order.num_classes}; "
            f"give {order.flag}-weights"
        )


def _not_fetched(order: _Order, error: OSError) -> UserError:
    reason = str(error).strip().partition("\n")[0]
    return UserError(
        f"{order.flag} {order.spec}: its published weights could not be fetched ({reason}); give {order.flag}-weights"
    )
