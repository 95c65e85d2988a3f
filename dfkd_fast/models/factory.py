"""Networks by name: ours, torchvision's and timm's, with what a caller must know about their input."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd_fast.catalog import MADE_FOR, MODELS, OTHERS
from dfkd_fast.config.image_size import Size
from dfkd_fast.config.own_networks import arguments_flag, hf_folder, own_network, program_file
from dfkd_fast.errors import UserError, unknown
from dfkd_fast.models.answers import settle_answer
from dfkd_fast.models.given import given_network, is_given
from dfkd_fast.models.huggingface import hf_network
from dfkd_fast.models.info import ModelInfo, Source, data_set_source
from dfkd_fast.models.libraries import NOBODY, Order, timm_network, torchvision_network
from dfkd_fast.models.library_values import values_of_built
from dfkd_fast.models.own_code import build_own
from dfkd_fast.models.programs import program_network
from dfkd_fast.models.shared_classifier import SharedForm, share_classifier
from dfkd_fast.models.weights.filling import classes_in, fill
from dfkd_fast.models.weights.header import read_header
from dfkd_fast.models.weights.read import Weights, check_numbers, read_weights
from dfkd_fast.models.zoo.cards import card_of, is_zoo
from dfkd_fast.models.zoo.files import zoo_file

_LAST_LAYER = "the last layer in its file"
_TRIED = 10  # classes, where the file will tell


def load_model(
    spec: str,
    *,
    num_classes: int | None = None,
    image_size: Size | None = None,
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

    `spec` is a name of `catalog.MODELS`, `zoo:NAME` (models/zoo/cards.py), `tv:NAME` (torchvision), `timm:NAME`, the
    user's own code, which is run (config/own_networks.py), or a module that was given in Python (models/given.py). An
    argument comes before what a header written by dfkd-fast says, that before the library's own configuration or the
    card, that before the convention of `data_set`, a name of `data_sets.DATA_SETS` (models/info.py). `mean` has one
    entry for each input channel. The network is on the CPU, in float32 and training mode.

    `weights_key` chooses where a file holds several networks (models/weights/filling.py).

    Raises UserError that names `flag` or `weights_flag` (`<flag>-weights`): for an unknown name, a value that is not to
    be had, weights that do not fit or cannot be read, and published weights that are missing, out of reach or made for
    other classes.
    `SPEC+sharedD` and `SPEC+sharedDxS` (or HxW) are students on a teacher's classifier (models/shared_classifier.py).
    """
    full, (spec, _, shared) = spec, spec.partition("+shared")
    shared = shared and f"shared{shared}"
    is_published = pretrained and weights is None
    if is_published and is_zoo(spec):
        weights, weights_flag = zoo_file(spec, flag), flag
    stored = None if weights is None else read_weights(weights, flag=weights_flag or f"{flag}-weights")
    saved = {} if stored is None else saved_info(stored)
    stated = {"num_classes": num_classes, "image_size": image_size, "mean": mean, "std": std, "in_chans": in_chans}
    order = Order(
        flag=flag,
        spec=spec,
        flags=Source("", {**stated, "interpolation": interpolation, "class_names": class_names}),
        file=Source("its file", saved),
        data_set=data_set_source(data_set),
        last=NOBODY if stored is None else Source(_LAST_LAYER, {"num_classes": _TRIED}),
        pretrained=is_published,
    )
    model, info = _build(order) if stored is None else _build_for(order, stored, weights_key)
    settle_answer(model, info.shape, info.num_classes, name=f"{flag} {spec}")
    if shared:
        model = share_classifier(model, SharedForm.parse(shared, f"{flag} {full}"), info)
        info = replace(info, name=full)
    if stored is not None:
        fill(model, stored, name=full, blank=info.blank(torch.zeros(())), key=weights_key)
        claim = stored.claim
        found = (saved.get("top1"), "") if saved or claim is None else claim
        info = replace(info, claimed_top1=found[0], claimed_by=found[1])
    elif order.pretrained or own_network(spec) is not None or is_given(spec):  # elsewhere weights are at random
        why = "its published weights are of no use" if order.pretrained else "its code made it so"
        hint = "give --teacher-weights" if flag == "--teacher" else "fix it"
        check_numbers(model.state_dict(), f"{flag} {full}", why=f"{why}: {hint}")
    return model, info


def _build(order: Order) -> tuple[nn.Module, ModelInfo]:
    """The network that an order names, at random or with its published weights."""
    library = order.spec.rpartition(":")[0]
    if library == "tv":
        return torchvision_network(order)
    if library == "timm":
        return timm_network(order)
    if is_zoo(order.spec):
        return _of_zoo(order)
    if is_given(order.spec):
        return _as_it_is(order, given_network(order.spec, order.flag))
    if hf_folder(order.spec) is not None:
        return hf_network(order)
    if program_file(order.spec) is not None:
        return program_network(order)
    if order.spec in MODELS:
        return _own(order)
    if (code := own_network(order.spec)) is not None:
        return _as_it_is(order, build_own(code, order.flag))
    raise unknown(order.flag, order.spec, [*MODELS, *OTHERS])


def _build_for(order: Order, stored: Weights, key: str | None) -> tuple[nn.Module, ModelInfo]:
    """The network that an order names, for as many classes as the last layer in a file has where neither flags nor
    header state them.

    Raises UserError where flags state another number, and where code of the user's own builds one for another.
    """
    model, info = _build(order)
    is_known = bool(order.num_classes) or own_network(order.spec) is not None
    count = classes_in(stored, model, info.num_classes, key, is_stated=is_known)
    differs, said = count not in (None, info.num_classes), f"{stored.flag} {stored.path}: its last layer is for {count}"
    if differs and order.flags.values.get("num_classes"):
        raise UserError(f"{said} classes, not {info.num_classes}; give --num-classes {count}, or leave it out")
    if differs and own_network(order.spec) is not None:
        built = f"{order.flag} {order.spec} builds one for {info.num_classes}"
        raise UserError(f"{said} classes, and {built}; say by {arguments_flag(order.flag)} NAME={count} how many")
    if is_known:
        return model, info
    if differs:
        model, info = _build(replace(order, file=Source("its file", {**order.file.values, "num_classes": count})))
    if count is not None:
        info = replace(info, sources={**info.sources, "num_classes": _LAST_LAYER})
    return model, info


def saved_info(stored: Weights) -> dict[str, Any]:
    """The ModelInfo in a file's header, as keyword arguments; empty for a file that others wrote."""
    return read_header(stored.metadata, f"{stored.flag} {stored.path}")


def _own(order: Order) -> tuple[nn.Module, ModelInfo]:
    if order.pretrained:
        raise UserError(f"{order.flag} {order.spec}: has no published weights; give {order.flag}-weights")
    size = MADE_FOR.get(order.spec)
    info = order.info(Source(f"what {order.spec} is made for", {"image_size": size}))
    return _built(order.spec, info), info


def _of_zoo(order: Order) -> tuple[nn.Module, ModelInfo]:
    """The network of a card, at random: its weights are in a file."""
    card = card_of(order.spec, order.flag)
    info = order.info(Source("its zoo card", card.values()))
    if order.pretrained:
        info = replace(info, published=card.described())
    return _built(card.network, info), info


def _built(name: str, info: ModelInfo) -> nn.Module:
    """A network of `catalog.MODELS` for the classes, channels and size of `info`."""
    module, function = MODELS[name][0].split(":")
    build = getattr(importlib.import_module(module), function)
    return build(info.num_classes, in_chans=info.in_chans, image_size=info.image_size)


def _as_it_is(order: Order, model: nn.Module) -> tuple[nn.Module, ModelInfo]:
    """A network that is for as many classes as it was made for."""
    name = f"{order.flag} {order.spec}"
    library = values_of_built(model, name)

    def known(classes: int) -> ModelInfo:
        return order.info(library._replace(values={**library.values, "num_classes": classes}))

    width = settle_answer(model, known(2).shape, order.num_classes, name=name)  # how many they are, its answer says
    info = known(width)
    names = info.class_names if len(info.class_names) == width else ()
    sources = dict(info.sources) | ({} if order.num_classes else {"num_classes": "its answer"})
    return model, replace(info, num_classes=width, class_names=names, sources=sources)
