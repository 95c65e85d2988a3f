"""Image classifiers of Hugging Face's transformers, from a local folder that `save_pretrained` wrote: `hf:FOLDER`."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from torch import nn

from dfkd_fast.config.own_networks import hf_folder
from dfkd_fast.errors import UserError
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.libraries import Order, check_classes
from dfkd_fast.models.library_values import values_of_transformers
from dfkd_fast.models.torchvision_cpu import ensure_importable


def hf_network(order: Order) -> tuple[nn.Module, ModelInfo]:
    """The network of a folder, at random or with its weights. How images are prepared, its preprocessor_config.json
    says, and its config.json what classes are called. Nothing is fetched, and no code of the folder's is run.

    Raises UserError where the folder holds no such network, or transformers is missing.
    """
    folder, called = hf_folder(order.spec), f"{order.flag} {order.spec}"
    assert folder is not None, "a spec that names such a folder"
    if not (folder / "config.json").is_file():
        raise UserError(f"{called}: no config.json there; expected a folder that transformers' save_pretrained wrote")
    ensure_importable()
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(f'{called}: needs transformers; pip install "dfkd-fast[hf]"') from error
    build, local = transformers.AutoModelForImageClassification, {"local_files_only": True}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **local)
        library = values_of_transformers(config, str(folder), called)
        info = order.info(library._replace(values={**library.values, "num_classes": config.num_labels}))
        if order.pretrained:
            check_classes(order, config.num_labels)
            model = build.from_pretrained(folder, config=config, **local)
            info = replace(info, published=f"those in {folder}")
        else:
            model = build.from_config(_fitted(config, info))
    except UserError:
        raise
    except Exception as error:  # the library's: no image classifier, no weights, a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{called}: cannot be built ({reason})") from error
    return model.float(), info


def _fitted(config: Any, info: ModelInfo) -> Any:
    """The configuration for the classes, channels and size of `info`."""
    if config.num_labels != info.num_classes:
        config.num_labels = info.num_classes
    if hasattr(config, "num_channels"):
        config.num_channels = info.in_chans
    if hasattr(config, "image_size"):
        config.image_size = info.image_size.written
    return config
