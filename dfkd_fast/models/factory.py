"""Networks by name: ours, torchvision's and timm's, with what a caller must know about their input."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd_fast.catalog import MODELS
from dfkd_fast.errors import UserError, one_of, unknown
from dfkd_fast.models.answers import settle_answer
from dfkd_fast.models.filling import fill
from dfkd_fast.models.header import read_header
from dfkd_fast.models.info import ModelInfo, Source, data_set_source, resolve
from dfkd_fast.models.library_values import timm_values, values_of_built
from dfkd_fast.models.own_code import build_own
from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_fast.models.vit import check_size, is_vit
from dfkd_fast.models.weights import Weights, read_weights
from dfkd_fast.own_networks import OwnNetwork, own_network

_NOBODY = Source("", {})


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What a caller asked for, and who beside a library says what the network expects."""

    flag: str
    spec: str
    flags: Source
    file: Source
    data_set: Source
    pretrained: bool

    @property
    def name(self) -> str:
        """The name within its library."""
        return self.spec.partition(":")[2] or self.spec

    @property
    def num_classes(self) -> int | None:
        """Classes that flags or file state; None where they leave them to the library."""
        return self.flags.values.get("num_classes") or self.file.values.get("num_classes")

    def info(self, library: Source = _NOBODY) -> ModelInfo:
        """The order completed by what a library says; raises UserError for what nobody knows."""
        # published weights are the library's own, whatever data set a preset names
        data_set = _NOBODY if self.pretrained else self.data_set
        return resolve(
            self.spec,
            flag=self.flag,
            flags=self.flags,
            file=self.file,
            library=library,
            data_set=data_set,
        )


def load_model(
    spec: str,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    in_chans: int | None = None,
    interpolation: str | None = None,
    class_names: tuple[str, ...] | None = None,
    data_set: str = "",
    weights: Path | None = None,
    weights_key: str | None = None,
    pretrained: bool = False,
    flag: str = "--teacher",
    weights_flag: str | None = None,
) -> tuple[nn.Module, ModelInfo]:
    """Build a network and fill it: from a file, else from its published weights if asked for, else at random.

    `spec` is a name of `catalog.MODELS`, `tv:NAME` (torchvision), `timm:NAME`, or the user's own code, which is run
    (own_networks.py). An argument comes before what a header written by dfkd-fast says, that before the library's own
    configuration, that before the convention of `data_set`, a name of `data_sets.DATA_SETS` (models/info.py). `mean`
    has one entry for each input channel. The network is on the CPU, in float32 and training mode.

    `weights_key` chooses where a file holds several networks (models/filling.py).

    Raises UserError that names `flag` or `weights_flag` (`<flag>-weights`): for an unknown name, a value that is not to
    be had, weights that do not fit or cannot be read, and published weights that are missing, out of reach or made for
    other classes.
    `SPEC+sharedD` and `SPEC+sharedDxS` are students on a teacher's classifier (models/shared_classifier.py).
    """
    full, (spec, _, shared) = spec, spec.partition("+shared")
    shared = shared and f"shared{shared}"
    stored = None if weights is None else read_weights(weights, flag=weights_flag or f"{flag}-weights")
    saved = {} if stored is None else saved_info(stored)
    stated = {"num_classes": num_classes, "image_size": image_size, "mean": mean, "std": std, "in_chans": in_chans}
    order = _Order(
        flag=flag,
        spec=spec,
        flags=Source("", {**stated, "interpolation": interpolation, "class_names": class_names}),
        file=Source("its file", saved),
        data_set=data_set_source(data_set),
        pretrained=pretrained and weights is None,
    )
    model, info = _build(order)
    settle_answer(model, info.shape, info.num_classes, name=f"{flag} {spec}")
    if shared:
        from dfkd_fast.models.shared_classifier import SharedForm, share_classifier  # which is made of this file's

        model = share_classifier(model, SharedForm.parse(shared, f"{flag} {full}"), info)
        info = replace(info, name=full)
    if stored is not None:
        fill(model, stored, name=full, blank=info.blank(torch.zeros(())), key=weights_key)
        info = replace(info, claimed_top1=saved.get("top1"))
    return model, info


def _build(order: _Order) -> tuple[nn.Module, ModelInfo]:
    """The network that an order names, by whoever makes it."""
    library = order.spec.rpartition(":")[0]
    if library == "tv":
        return _torchvision(order)
    if library == "timm":
        return _timm(order)
    if order.spec in MODELS:
        return _own(order)
    if (code := own_network(order.spec)) is not None:
        return _by_code(order, code)
    raise unknown(order.flag, order.spec, [*MODELS, "FILE.py:NAME", "package.module:NAME", "tv:NAME", "timm:NAME"])


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


def _by_code(order: _Order, code: OwnNetwork) -> tuple[nn.Module, ModelInfo]:
    model, name = build_own(code, order.flag), f"{order.flag} {order.spec}"
    library = values_of_built(model, name)

    def known(classes: int) -> ModelInfo:
        return order.info(library._replace(values={**library.values, "num_classes": classes}))

    width = settle_answer(model, known(2).shape, order.num_classes, name=name)  # how many they are, its answer says
    info = known(width)
    names = info.class_names if len(info.class_names) == width else ()
    sources = dict(info.sources) | ({} if order.num_classes else {"num_classes": "its answer"})
    return model, replace(info, num_classes=width, class_names=names, sources=sources)


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
    categories = tuple(first.meta["categories"])
    values = {
        "num_classes": len(categories),
        "image_size": preset.crop_size[0],
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "interpolation": preset.interpolation.value,
        "class_names": categories,
    }
    info = order.info(Source("torchvision's configuration", values))
    if info.in_chans != 3:
        raise UserError(f"{order.flag} {order.spec}: takes images of 3 channels, not {info.in_chans}")
    if order.pretrained:
        _check_classes(order, len(categories))
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
    info = order.info(Source("timm's configuration", timm_values(config)))
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
