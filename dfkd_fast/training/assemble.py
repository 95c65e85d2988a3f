"""Assemble a run: its runtime, its networks (the teacher, loaded or trained, and a matching student), its method."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_fast.catalog import INSTALLED, METHODS, MODELS
from dfkd_fast.config.own_networks import own_network
from dfkd_fast.config.train import NetworkInput, TrainConfig
from dfkd_fast.data.class_order import stated_order
from dfkd_fast.data.splits import check_disjoint_splits, load_split
from dfkd_fast.data.stream import LabelledImages
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.messages.notes import note
from dfkd_fast.methods.base import CollectedImages, Method, Setup
from dfkd_fast.methods.registry import register_method
from dfkd_fast.models.answers import check_training
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.fused_batchnorm import give_fused_batchnorm
from dfkd_fast.models.given import is_given
from dfkd_fast.models.teacher import FrozenNet, frozen_alias
from dfkd_fast.parallel.global_batch import MicroBatches
from dfkd_fast.parallel.sync_norm import convert_sync_batchnorm
from dfkd_fast.rng import seed_phase
from dfkd_fast.text.class_names import read_class_names, spoken_names, with_synonyms
from dfkd_fast.text.label_embeddings import ENCODED, label_embeddings, origin
from dfkd_fast.training.evaluate import in_stated_order, stated_channels
from dfkd_fast.training.ranks import check_global_batch, check_micro_batches, share_of_rank
from dfkd_fast.training.teachers.cache import cached_teacher


def runtime_of(config: TrainConfig) -> Runtime:
    """The runtime that a run's settings ask for; raises UserError as `make_runtime` does."""
    if config.bn.scope == "global" and not load_method(config.method_name).supports.global_batch:
        raise UserError(
            f"--bn.scope global: {config.method_name} cannot train on one batch over all ranks; choose rank"
        )
    return make_runtime(
        device=config.device,
        precision=config.precision,
        channels_last=config.channels_last,
        threads=config.threads,
        compilation=config.compile,
        graphs=config.cuda_graphs,
        optimizer=config.optim.impl,
        bn_scope=config.bn.scope,
        deterministic=config.deterministic,
    )


def load_teacher(
    config: TrainConfig, test: LabelledImages | None, runtime: Runtime, *, on_step: Callable[[], None]
) -> tuple[nn.Module, ModelInfo]:
    """The teacher that the config names: trained on the spot (`--train-teacher`), from a checkpoint, or published
    weights.

    Flags come before what a checkpoint says about itself (classes, size, normalisation, class names), that before its
    library's configuration and the convention of `--teacher-data`; `test` tells how good a trained one is, and no
    more. `on_step` is called after each step of a training and raises to stop it.
    """
    if config.train_teacher:
        check_disjoint_splits(str(config.data))
        size, interpolation = config.image_size, config.interpolation or "bilinear"
        channels = stated_channels(config)
        train = load_split(str(config.data), "train", image_size=size, channels=channels, interpolation=interpolation)
        train = in_stated_order(train, config)
        recipe = config.teacher_recipe
        return cached_teacher(recipe, config.teacher, train, test, runtime=runtime, stated=config, on_step=on_step)
    if config.teacher_weights is None and config.teacher in MODELS:
        raise UserError(
            f"--teacher {config.teacher}: no published weights; give --teacher-weights FILE or --train-teacher"
        )
    published = config.teacher_weights is None
    if not published and config.teacher.startswith("tv:") and "@" in config.teacher:
        weights = config.teacher.partition("@")[2]
        note(
            f"--teacher {config.teacher}: --teacher-weights brings other weights; what neither flags nor that file say "
            f"of images is taken from @{weights}"
        )
    if published and own_network(config.teacher) is not None:
        published = False
        note(f"--teacher {config.teacher}: no --teacher-weights, so it is taken as its code returns it")
    return load_model(
        config.teacher,
        **stated_values(config),
        data_set=config.teacher_data,
        weights=config.teacher_weights,
        weights_key=config.teacher_weights_key,
        pretrained=published and not is_given(config.teacher),
        flag="--teacher",
    )


def stated_values(stated: NetworkInput) -> dict[str, Any]:
    """What flags say of a network's input and classes, as arguments of `load_model`."""
    order = stated_order(stated.class_order)
    return {
        "num_classes": stated.num_classes,
        "image_size": stated.image_size,
        "mean": stated.mean,
        "std": stated.std,
        "in_chans": stated.in_chans,
        "interpolation": stated.interpolation,
        "class_names": order.names if order is not None else None,
    }


def make_student(config: TrainConfig, info: ModelInfo, runtime: Runtime) -> nn.Module:
    """A freshly initialised student for the teacher's classes, size and channels; the same on every rank."""
    seed_phase(config.seed, 0, 0, "student")
    student, fits = load_model(
        config.student,
        num_classes=info.num_classes,
        image_size=info.image_size,
        mean=info.mean,
        std=info.std,
        in_chans=info.in_chans,
        flag="--student",
    )
    check_training(student, fits.shape, name=f"--student {config.student}")
    runtime.place(student.to(torch.float32))
    convert_sync_batchnorm(student, runtime.global_batch, f"--student {config.student}")
    give_fused_batchnorm(student, config.bn.fused, runtime, trace=True)
    return student


def load_method(name: str) -> type[Method]:
    """The method's class, imported when it is first needed."""
    module, _, cls = METHODS[name].partition(":")
    found = getattr(importlib.import_module(module), cls)
    if name in INSTALLED:  # by another distribution, which has told no more than where it is
        register_method(name, found)
    return found


def make_method(
    config: TrainConfig,
    method_class: type[Method],
    teacher: FrozenNet,
    student: nn.Module,
    runtime: Runtime,
    collected: CollectedImages | None = None,
    *,
    vectors: Tensor | None = None,
) -> Method:
    """The method on its networks, on the device, with this rank's share of the recipe; the same on every rank.
    `vectors` (K, D) stand in for those of `--text`.
    """
    if vectors is None:
        vectors, text = class_vectors(config, method_class, teacher.info.num_classes, teacher.info.class_names)
    else:
        text = origin(config.text)
    seed_phase(config.seed, 0, 0, "method")
    share = share_of_rank(config.method, runtime.shares)
    parts = config.synthesis_micro_batches
    alias, global_batch = frozen_alias(student), runtime.global_batch if parts == 1 else MicroBatches(parts)
    method = method_class(share, Setup(teacher, alias, teacher.info, vectors, text, collected, global_batch))
    runtime.place(method)
    give_fused_batchnorm(method, config.bn.fused, runtime, trace=False)
    method.check_run()
    check_global_batch(method, config.method_name)
    check_micro_batches(method, config.method_name, parts, runtime)
    return method


def class_vectors(
    config: TrainConfig, method: type[Method], num_classes: int, class_names: Sequence[str]
) -> tuple[Tensor, str]:
    """Embeddings (K, D) for `--text`, and where they are from; (K, 0) for a method that does not ask.

    Names are those of `--class-names`, else `class_names`, what the teacher's outputs are called (`ModelInfo`; empty:
    not known). Real images are not asked. Raises UserError for a source that the method does not
    take, and for vectors that are unavailable.
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
