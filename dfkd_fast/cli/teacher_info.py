"""`dfkd-fast teacher info`: what a network or a checkpoint is, and who says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from dfkd_fast.catalog import MODELS
from dfkd_fast.config.flag_help import HelpPage
from dfkd_fast.config.flags import from_flags, parse
from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.config.own_networks import own_network, resolved
from dfkd_fast.config.setting import setting
from dfkd_fast.config.train import NetworkInput, check_teacher_data, check_values
from dfkd_fast.errors import UserError
from dfkd_fast.messages.terminal import show
from dfkd_fast.models.zoo.cards import Card, card_of, is_zoo


@dataclass(frozen=True, kw_only=True)
class InfoOptions(NetworkInput):
    """Flags of `dfkd-fast teacher info`."""

    network: str | None = None
    """network in FILE, where the file does not say: named as train's --teacher"""
    weights_key: str | None = None
    """which of several networks in FILE, as train's --teacher-weights-key"""
    teacher_data: str = setting("", formerly="")
    """data set that it was trained on, as train's --teacher-data"""
    teacher_args: tuple[str, ...] = setting((), formerly=())
    """arguments that your own network is built with, NAME=VALUE"""


def info(target: str, arguments: Sequence[str]) -> None:
    """Print what is known of a checkpoint, or of a network by name, and of its input by whom."""
    options = parse(
        InfoOptions,
        InfoOptions(),
        from_flags(arguments),
        page=HelpPage(usage="usage: dfkd-fast teacher info FILE|MODEL [flags]"),
    )
    check_values(options)
    check_teacher_data(options.teacher_data)
    if options.network is not None:
        options = replace(options, network=resolved(options.network, options.teacher_args, "--teacher"))
    elif looks_like_file(target):
        raise UserError(f"teacher info {target}: no such file")
    elif not Path(target).is_file():
        target = resolved(target, options.teacher_args, "--teacher")
    elif options.teacher_args:
        raise UserError(f"--teacher-args {options.teacher_args[0]}: say by --network whose they are")
    from dfkd_fast.training.saved import is_network

    is_checkpoint = Path(target).is_file() and not is_network(target)
    rows = describe_file(Path(target), options) if is_checkpoint else describe_model(target, options)
    for name, value in list(rows):  # what is said while they are found stands above them
        show(f"{name:18}{value}")


def looks_like_file(target: str) -> bool:
    """Whether a name that is no file was meant as one: it has a folder, or the ending of a checkpoint."""
    return (
        not Path(target).exists()
        and own_network(target) is None
        and ":" not in target
        and ("/" in target or Path(target).suffix in (".pth", ".pt", ".th", ".safetensors", ".bin", ".ckpt", ".tar"))
    )


def describe_file(file: Path, options: InfoOptions) -> Iterator[tuple[str, object]]:
    """What a checkpoint says of itself and what its tensors tell; its network is built where --network names it."""
    from dfkd_fast.models.factory import load_model, saved_info
    from dfkd_fast.models.info import Source, data_set_source, known_values
    from dfkd_fast.models.weights.read import read_weights
    from dfkd_fast.training.assemble import stated_values

    weights = read_weights(file, flag="teacher info")
    saved, tensors = saved_info(weights), weights.tensors_of(options.weights_key)
    yield "network", options.network or saved.get("name", "not said; dfkd-fast did not write this file")
    if options.network is not None:
        values = stated_values(options)
        _, found = load_model(
            options.network,
            **values,
            data_set=options.teacher_data,
            weights=file,
            weights_key=options.weights_key,
            flag="--network",
            weights_flag="teacher info",
        )
        yield from input_rows({key: getattr(found, key) for key in INPUT_ROWS}, found.sources)
    else:
        sources = (Source("", stated_values(options)), Source("its file", saved), data_set_source(options.teacher_data))
        yield from input_rows(*known_values(dict.fromkeys(INPUT_ROWS, sources)))
    if saved.get("top1") is not None:
        yield "top-1", f"{saved['top1']:.4f} (held-out images, says its file)"
    elif weights.claim is not None:
        yield "top-1", f"{weights.claim.top1:.4f} (says {weights.claim.entry} in its file)"
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    yield "parameters", sum(value.numel() for key, value in tensors.items() if not key.endswith(buffers))
    yield "BatchNorm layers", sum(key.endswith("running_mean") for key in tensors)
    yield "sha256", sha256(file.read_bytes()).hexdigest()


def card_rows(card: Card) -> Iterator[tuple[str, object]]:
    """What a zoo network's card says beside its input, and where its file is."""
    from dfkd_fast.models.zoo.files import VARIABLE, find_file

    yield "source", card.source
    yield "licence", card.licence
    yield "trained on", card.data_set
    yield "top-1", f"{card.top1 / 100:.4f} (published, test images of {card.data_set})"
    yield "file", card.file
    yield "sha256", card.sha256
    place = find_file(card)
    yield "lies at", place or f"no place yet: the folder {VARIABLE} may have it, else it is fetched from {card.url}"


INPUT_ROWS = ("num_classes", "image_size", "in_chans", "mean", "std", "interpolation")


def input_rows(values: Mapping[str, Any], sources: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    """What is known of a network's input and classes, and below who says so."""
    said: dict[str, list[str]] = {}
    for key in INPUT_ROWS:
        if key in values:
            value = ImageSize.of(values[key]) if key == "image_size" else values[key]
            is_list = isinstance(value, tuple) and key != "image_size"
            yield key.replace("_", " "), list(value) if is_list else value
            if key in sources:
                said.setdefault(sources[key], []).append(key.replace("_", " "))
    if said:
        yield "said by", "; ".join(f"{who} ({', '.join(keys)})" for who, keys in said.items())


def describe_model(name: str, options: InfoOptions) -> Iterator[tuple[str, object]]:
    """What a network by name is, without weights. Ours are built for 10 classes of 32-pixel images where no flag says
    otherwise, and have no normalisation of their own.
    """
    from torch import nn

    from dfkd_fast.models.factory import load_model
    from dfkd_fast.training.assemble import stated_values

    values = stated_values(options)
    if name in MODELS:
        even = (0.5,) * (values["in_chans"] or len(values["mean"] or (0,) * 3))
        ours = {"num_classes": 10, "image_size": 32, "mean": even, "std": even}
        built = values | {key: values[key] or value for key, value in ours.items()}
    else:
        built = values | {"data_set": options.teacher_data}
    model, found = load_model(name, flag="teacher info", **built)
    yield "network", name
    if is_zoo(name):
        yield from card_rows(card_of(name, "teacher info"))
    own = () if name not in MODELS else [key for key in ("mean", "std") if values[key] is None]
    sources = {key: who for key, who in found.sources.items() if name not in MODELS or values.get(key)}
    yield from input_rows({key: getattr(found, key) for key in INPUT_ROWS if key not in own}, sources)
    yield "parameters", sum(parameter.numel() for parameter in model.parameters())
    yield "BatchNorm layers", sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
