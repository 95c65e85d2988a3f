"""Networks of the libraries torchvision and timm, and what a caller orders of any network."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.models.info import ModelInfo, Source, resolve
from dfkd_fast.models.library_values import chosen_weights, described_weights, timm_values
from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_fast.models.vit import check_size, is_vit

NOBODY = Source("", {})
"""knows nothing"""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a caller asked for, and who beside a library says what the network expects."""

    flag: str
    spec: str
    flags: Source
    file: Source
    data_set: Source
    last: Source
    """what is tried where nobody knows"""
    pretrained: bool

    @property
    def name(self) -> str:
        """The name within its library, without published weights that it may ask for."""
        return (self.spec.partition(":")[2] or self.spec).partition("@")[0]

    @property
    def num_classes(self) -> int | None:
        """Classes that flags or file state; None where they leave them to the library."""
        return self.flags.values.get("num_classes") or self.file.values.get("num_classes")

    def info(self, library: Source = NOBODY) -> ModelInfo:
        """The order completed by what a library says; raises UserError for what nobody knows."""
        # published weights are the library's own, whatever data set a preset names
        data_set = NOBODY if self.pretrained else self.data_set
        return resolve(
            self.spec,
            flag=self.flag,
            flags=self.flags,
            file=self.file,
            library=library,
            data_set=data_set,
            last=self.last,
        )


def torchvision_network(order: Order) -> tuple[nn.Module, ModelInfo]:
    """A network `tv:NAME` or `tv:NAME@WEIGHTS`, at random or with its published weights.

    Raises UserError where it is unavailable.
    """
    ensure_importable()
    from torchvision import models

    names = models.list_models(module=models)
    if order.name not in names:
        raise _no_such(order, names, "torchvision")
    published = models.get_model_weights(order.name)
    _, at, choice = order.spec.partition("@")
    if at and not choice:
        known = one_of(f"@{weights.name}" for weights in published)
        raise UserError(f"{order.flag} {order.spec}: names no weights behind the @; choose {known}, or leave it out")
    chosen = chosen_weights(published, choice, f"{order.flag} {order.spec}")
    preset = chosen.transforms()
    categories = tuple(chosen.meta["categories"])
    values = {
        "num_classes": len(categories),
        "image_size": ImageSize.of(preset.crop_size[0]),
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "interpolation": preset.interpolation.value,
        "class_names": categories,
    }
    info = order.info(Source("torchvision's configuration", values))
    if info.in_chans != 3:
        raise UserError(f"{order.flag} {order.spec}: takes images of 3 channels, not {info.in_chans}")
    if order.pretrained:
        check_classes(order, len(categories))
        info = replace(info, published=described_weights(published, chosen))
    weights = chosen if order.pretrained else None
    try:
        model = models.get_model(order.name, weights=weights, num_classes=info.num_classes)
    except OSError as error:
        raise _not_fetched(order, error) from error
    return model, info


def timm_network(order: Order) -> tuple[nn.Module, ModelInfo]:
    """A network `timm:NAME`, at random or with its published weights. Raises UserError where it is unavailable."""
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
    info = order.info(Source("timm's configuration", timm_values(config)))
    if order.pretrained:
        check_classes(order, config["num_classes"])
        info = replace(info, published=f"timm's {'.'.join(filter(None, (config['architecture'], config['tag'])))}")
    sizes: dict[str, Any] = {"num_classes": info.num_classes, "in_chans": info.in_chans}
    own_size = ImageSize(*config["input_size"][-2:])
    if config.get("fixed_input_size") and info.image_size != own_size:
        sizes["img_size"] = (
            info.image_size.height if info.image_size.is_square else tuple(info.image_size)
        )  # a transformer's grid; published position embeddings are resized to it
    try:
        model = timm.create_model(order.name, pretrained=order.pretrained, **sizes)
    except OSError as error:
        raise _not_fetched(order, error) from error
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # networks that only their own size fits
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{order.flag} {order.spec}: cannot be built for images of {info.image_size} pixels ({reason}); choose "
            f"--image-size {own_size.flag}, or another network"
        ) from error
    if "img_size" in sizes and is_vit(model):
        check_size(model, info.image_size, f"{order.flag} {order.spec}")
    return model, info


def _no_such(order: Order, names: Iterable[str], library: str) -> UserError:
    """Libraries know too many names to list: the nearest ones instead."""
    prefix = order.spec.partition(":")[0]
    nearest = difflib.get_close_matches(order.name, list(names), n=3, cutoff=0.5)
    hint = f"did you mean {one_of(f'{prefix}:{name}' for name in nearest)}?" if nearest else "see its documentation"
    return UserError(f"{order.flag} {order.spec}: {library} has no classification network of that name; {hint}")


def check_classes(order: Order, published: int) -> None:
    """Raise UserError where another number of classes is stated than published weights know."""
    if order.num_classes not in (None, published):
        raise UserError(
            f"{order.flag} {order.spec}: its published weights know {published} classes, not {order.num_classes}; "
            f"give {order.flag}-weights"
        )


def _not_fetched(order: Order, error: OSError) -> UserError:
    reason = str(error).strip().partition("\n")[0]
    return UserError(
        f"{order.flag} {order.spec}: its published weights could not be fetched ({reason}); give {order.flag}-weights"
    )
