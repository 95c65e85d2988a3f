"""What a run computes on, its networks (the teacher, loaded or trained, and a student that fits it), and its method."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dfkd_fast.catalog import FACTS, METHODS, MODELS
from dfkd_fast.config.own_networks import own_network
from dfkd_fast.config.train import NetworkInput, TrainConfig
from dfkd_fast.data.class_order import stated_order
from dfkd_fast.data.splits import check_disjoint_splits, load_split
from dfkd_fast.data.stream import LabelledImages
from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.messages.notes import note
from dfkd_fast.methods.base import CollectedImages, Method, Setup
from dfkd_fast.models.answers import check_training
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.teacher import FrozenNet, frozen_alias
from dfkd_fast.parallel.global_batch import MicroBatches
from dfkd_fast.parallel.sync_norm import convert_sync_batchnorm
from dfkd_fast.rng import seed_phase
from dfkd_fast.training.class_vectors import class_vectors
from dfkd_fast.training.evaluate import check_fit, in_stated_order, stated_channels
from dfkd_fast.training.failures import is_out_of_memory
from dfkd_fast.training.ranks import check_global_batch, check_micro_batches, share_of_rank
from dfkd_fast.training.teachers.cache import cached_teacher
from dfkd_kernels.freeze.norms import is_frozen_batchnorm


def runtime_of(config: TrainConfig) -> Runtime:
    """The runtime that a run's settings ask for; raises UserError as `make_runtime` does."""
    if config.bn.scope == "global" and not load_method(config.method_name).supports.global_batch:
        raise UserError(f"--bn.scope global: {config.method_name} cannot join the batches of its ranks; choose rank")
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
        pretrained=published,
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


def check_teacher(
    teacher: nn.Module, info: ModelInfo, method: type[Method], config: TrainConfig, test: LabelledImages | None
) -> None:
    """Raise UserError where teacher, data and method do not fit, before anything is written."""
    bn_weight = getattr(config.method, "bn_weight", None)
    matches = method.needs.batchnorm if bn_weight is None else bn_weight != 0
    if matches and not any(map(_has_statistics, teacher.modules())):
        flag = "" if bn_weight is None else "give --method.bn-weight 0, "
        others = [name for name, facts in FACTS.items() if facts.batchnorm == "no"]
        without = f", or a method that needs none: {one_of(others)}" if others else ""
        raise UserError(
            f"--teacher {config.teacher}: {config.method_name} matches BatchNorm statistics and this network has none; "
            f"{flag}choose a teacher with BatchNorm{without}"
        )
    if test is not None:
        check_fit(test, info, "--data")


def check_frozen(teacher: FrozenNet, runtime: Runtime) -> None:
    """Raise UserError where the teacher as the run computes it fails on an image, or passes no gradient back to it."""
    cuda = [runtime.device] if runtime.device.type == "cuda" else []
    view = teacher.info.blank(torch.zeros((), device=runtime.device, dtype=runtime.master_dtype))
    view = view.expand(2, -1, -1, -1).clone().requires_grad_()
    with torch.random.fork_rng(devices=cuda):  # a vision transformer draws where it looks
        try:
            with runtime.autocast():
                logits = teacher(view).logits
            logits.float().sum().backward()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"--teacher {teacher.info.name}: passes no gradient back to its images, which methods learn by "
                f"({reason}); choose another network"
            ) from error


def _has_statistics(module: nn.Module) -> bool:
    """Whether a frozen network hands out batch moments of this layer."""
    counts = isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) or is_frozen_batchnorm(module)
    return counts and getattr(module, "running_mean", None) is not None


def check_pool_use(config: TrainConfig, method: Method, world_size: int = 1) -> None:
    """Raise UserError where the student would start on an empty pool, or a pool cannot hold what the recipe makes.

    `method` has one rank's share of the recipe, and `--pool.capacity` counts the images of all of `world_size`.
    """
    warmup = config.method.warmup_epochs
    for plan in method.pools() if method.loop == "alternating" else ():
        if not ((plan.fill_images and warmup) or any(plan.rounds(epoch) for epoch in range(warmup + 1))):
            raise UserError(
                f"--method.warmup-epochs {warmup}: no synthesis round before the student's first step; "
                "give at least one"
            )
        policy = config.pool.policy or plan.policy
        if plan.fill_images:
            _check_filled_pool(config, policy, plan.capacity * world_size)
        least = {"append": plan.capacity, "ring": plan.synthesis_batch_size, "cap": 1}[policy] * world_size
        if config.pool.capacity is not None and config.pool.capacity < least:
            other = " (or --pool.policy ring)" if policy == "append" else ""
            raise UserError(
                f"--pool.capacity {config.pool.capacity}: choose {least} or more for --pool.policy {policy}{other}"
            )


def _check_filled_pool(config: TrainConfig, policy: str, capacity: int) -> None:
    """Such a pool is filled to its capacity over what was there before: it can be neither larger nor smaller."""
    why = f"{config.method_name} fills its pool once, at the end of the warm-up, to exactly its size"
    if policy != "ring":
        raise UserError(f"--pool.policy {policy}: {why}; choose ring")
    if config.pool.capacity not in (None, capacity):
        raise UserError(f"--pool.capacity {config.pool.capacity}: {why}; choose {capacity}, or leave it out")


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
    return convert_sync_batchnorm(student, runtime.global_batch, f"--student {config.student}")


def load_method(name: str) -> type[Method]:
    """The method's class, imported when it is first needed."""
    module, _, cls = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def make_method(
    config: TrainConfig,
    method_class: type[Method],
    teacher: FrozenNet,
    student: nn.Module,
    runtime: Runtime,
    collected: CollectedImages | None = None,
) -> Method:
    """The method on its networks, on the device, with this rank's share of the recipe; the same on every rank."""
    embeddings, text = class_vectors(config, method_class, teacher.info.num_classes, teacher.info.class_names)
    seed_phase(config.seed, 0, 0, "method")
    share = share_of_rank(config.method, runtime.shares)
    parts = config.synthesis_micro_batches
    twin, global_batch = frozen_alias(student), runtime.global_batch if parts == 1 else MicroBatches(parts)
    method = method_class(share, Setup(teacher, twin, teacher.info, embeddings, text, collected, global_batch))
    runtime.place(method)
    method.check_run()
    check_global_batch(method, config.method_name)
    check_micro_batches(method, config.method_name, parts, runtime)
    return method
