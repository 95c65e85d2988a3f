"""The class vectors of a run, where its method asks what the classes are called."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dfkd_fast.config.train import TrainConfig
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.methods.base import Method
from dfkd_fast.text.class_names import read_class_names, spoken_names, with_synonyms
from dfkd_fast.text.label_embeddings import ENCODED, label_embeddings, origin


def class_vectors(
    config: TrainConfig, method: type[Method], num_classes: int, class_names: Sequence[str]
) -> tuple[Tensor, str]:
    """Embeddings (K, D) for `--text`, and where they are from; (K, 0) for a method that does not ask.

    Names are those of `--class-names`, else `class_names`, what the teacher's outputs are called (`ModelInfo`; empty:
    not known). Real images are not asked. Raises UserError for a source that the method does not
    take, and for vectors that are not to be had.
    """
    source = origin(config.text)
    if not method.needs.text:
        if config.text != type(config).text:
            raise UserError(f"--text {config.text}: {config.method_name} takes no class vectors; leave it out")
        return torch.empty(num_classes, 0), source
    if source not in method.needs.text:
        raise UserError(f"--text {config.text}: {config.method_name} takes {one_of(method.needs.text)}")
    _check_used(config, source)
    names = None
    if config.class_names is not None:
        names = read_class_names(config.class_names, num_classes)
    elif class_names:
        names = spoken_names(class_names, config.teacher_data)
        if names is not None and config.prompt == "released" and source in ENCODED:
            names = with_synonyms(names, flag="--prompt released")
    embeddings = label_embeddings(config.text, num_classes, names=names, prompt=config.prompt, model=config.text_model)
    return embeddings, source


def _check_used(config: TrainConfig, source: str) -> None:
    """Raise UserError for a setting that vectors of this source do not hear of: it would change nothing, silently."""
    if source in ENCODED:
        return
    model = "" if source == "class-index" else config.text_model
    settings = {"--prompt": config.prompt, "--text-model": model, "--class-names": config.class_names}
    for flag, value in settings.items():
        if value not in ("", None, type(config).prompt):
            raise UserError(
                f"{flag} {value}: has no effect with --text {config.text}; leave it out, or choose --text "
                f"{one_of(ENCODED)}"
            )
