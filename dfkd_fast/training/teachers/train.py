"""Training a teacher on real images; `cache.py` keeps what was trained."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd_fast.augment import draw_crop_flip, random_resized_crop
from dfkd_fast.config.own_networks import own_network, unplaced
from dfkd_fast.config.recipes import TeacherRecipe
from dfkd_fast.config.train import NetworkInput
from dfkd_fast.data.splits import ImageSet
from dfkd_fast.data.statistics import compute_statistics
from dfkd_fast.data.stream import LabelledImages
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.device.switches import named_operator
from dfkd_fast.errors import UserError
from dfkd_fast.models.answers import check_training
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.models.own_code import source_files
from dfkd_fast.optim import OptimizerSpec, cosine, set_lr
from dfkd_fast.reporting.console import Console, ConsoleKind, count, duration, make_console
from dfkd_fast.reporting.meters import Meter
from dfkd_fast.rng import seed_phase
from dfkd_fast.sampling import EpochShuffle
from dfkd_fast.training.evaluate import Evaluation, evaluate
from dfkd_fast.training.teachers.state import TrainingState
from dfkd_kernels import gather_augment


@named_operator()
def train_teacher(
    recipe: TeacherRecipe,
    model_name: str,
    train: ImageSet,
    test: LabelledImages | None,
    *,
    runtime: Runtime,
    stated: NetworkInput | None = None,
    console: ConsoleKind = "auto",
    on_step: Callable[[], None] | None = None,
    state: TrainingState | None = None,
) -> tuple[nn.Module, ModelInfo, Evaluation | None]:
    """Train `model_name` on `train` by `recipe`, in the runtime's precision and memory format unless it has its own.

    It is normalised with the mean and spread that `stated` says, else with those of the pixels of `train`. Returns the
    last epoch's network in evaluation mode on the runtime's device, what it expects, and its evaluation on
    `test` (None without one), which is made once, at the end. `on_step` is called after each step and raises to stop
    the training. With a `state` it goes on from there, and keeps there what each epoch comes to. Raises UserError where
    the splits do not fit each other.
    """
    _check_splits(train, test)
    recipe = recipe.for_size(train.image_size.short)
    model, info = _fresh_network(recipe, model_name, train, stated)
    check_training(model, info.shape, name=f"--teacher {model_name}")
    runtime = _in_precision(recipe, runtime)
    model = runtime.place(model)
    show = make_console(console, is_main=runtime.is_main)
    if recipe.style == "large":
        show.print(f"teacher {model_name} | {described(recipe)}")
    start = time.perf_counter()
    _Trainer(recipe, model, info, train, runtime, on_step, state).run(show)
    model.eval()
    found = evaluate(model, test, info=info, runtime=runtime) if test is not None else None
    accuracy = f" | top-1 {found.top1:.4f} on {len(found.predictions)} held-out images" if found else ""
    spent = duration(time.perf_counter() - start)
    show.print(f"teacher {model_name} | {recipe.epochs} epochs in {spent}{accuracy}")
    return model, info, found


def described(recipe: TeacherRecipe) -> str:
    """What is decided for the images' size, in a line for the user."""
    smoothing, scale = recipe.label_smoothing, recipe.crop_scale
    crops = f"crops of {scale:g} of the area and more" if scale < 1 else f"crops padded by {recipe.crop_padding}"
    schedule = f"{recipe.epochs} epochs of batches of {recipe.batch_size}, lr {recipe.lr:g}"
    return f"{recipe.style} recipe: {schedule}, {crops}, label smoothing {smoothing:g}"


_NETWORK = ("name", "num_classes", "image_size", "mean", "std", "in_chans")


class _Trainer:
    """SGD on cross-entropy over random crops and flips; the learning rate follows a cosine, step by step."""

    def __init__(
        self,
        recipe: TeacherRecipe,
        model: nn.Module,
        info: ModelInfo,
        train: ImageSet,
        runtime: Runtime,
        on_step: Callable[[], None] | None,
        state: TrainingState | None,
    ) -> None:
        self.state = state
        self.recipe, self.model, self.info, self.runtime, self.on_step = recipe, model, info, runtime, on_step
        self.images, self.labels = train.images.to(runtime.device), train.labels.to(runtime.device)
        self.batch_size = min(recipe.batch_size, len(train))
        self.steps_per_epoch = len(train) // self.batch_size
        self.optimizer = OptimizerSpec(
            kind="sgd",
            groups=[{"params": list(model.parameters()), "lr": recipe.lr}],
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        ).build()
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")

    def run(self, show: Console) -> None:
        """All epochs that are to come."""
        epochs, kept = self.recipe.epochs, (self.model, self.optimizer, self.scaler)
        first = self.state.take_up(*kept, show.print) if self.state else 0
        if first:
            show.print(f"teacher {self.info.name} | goes on after epoch {first} of {epochs}")
        show.begin(f"teacher {self.info.name}", epochs * self.steps_per_epoch)
        self.model.train()
        try:
            for epoch in range(first, epochs):
                start = time.perf_counter()
                loss = self.epoch(epoch, show)
                speed = self.steps_per_epoch * self.batch_size / (time.perf_counter() - start)
                show.status(f"epoch {epoch + 1}/{epochs} | ce {loss:.3g} | {count(speed)} img/s")
                if not math.isfinite(loss):
                    raise UserError(f"--teacher {self.info.name}: training diverged in epoch {epoch + 1}; lower its lr")
                if self.state:
                    self.state.save(epoch, *kept)
        finally:
            show.end()

    def epoch(self, epoch: int, show: Console) -> float:
        """One pass over the images, a partial last batch left out; returns the mean loss."""
        seed_phase(self.recipe.seed, 0, epoch, "teacher")
        sampler = EpochShuffle(len(self.images), self.batch_size, device=self.runtime.device)
        meter = Meter()
        for step in range(self.steps_per_epoch):
            done = epoch * self.steps_per_epoch + step
            progress = done / (self.recipe.epochs * self.steps_per_epoch)
            set_lr(self.optimizer, self.recipe.lr * cosine(progress))
            meter.update({"ce": self.step(sampler.draw().slots)}, self.batch_size)
            show.advance(done + 1)
            if self.on_step is not None:
                self.on_step()
        return meter.read()["ce"]

    def step(self, indices: Tensor) -> Tensor:
        """One SGD step on the images at `indices` (B,); returns the detached loss."""
        recipe, runtime = self.recipe, self.runtime
        pad = recipe.crop_padding if recipe.crop_scale == 1 else 0
        params = draw_crop_flip(len(indices), pad=pad, flip=recipe.flip, device=runtime.device)
        view = gather_augment(
            self.images,
            indices,
            params.shifts,
            params.flips,
            self.info.mean,
            self.info.std,
            pad=pad,
            dtype=runtime.master_dtype,
            memory_format=runtime.memory_format,
        )
        if recipe.crop_scale < 1:
            view = random_resized_crop(view, scale=recipe.crop_scale)
        self.optimizer.zero_grad(set_to_none=True)
        with runtime.autocast():
            logits = self.model(view)
        loss = F.cross_entropy(
            logits.to(runtime.master_dtype), self.labels[indices], label_smoothing=recipe.label_smoothing
        )
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


def _fresh_network(
    recipe: TeacherRecipe, model_name: str, train: ImageSet, stated: NetworkInput | None
) -> tuple[nn.Module, ModelInfo]:
    """The network before its training. Its values go with it into its file, so that nobody has to state them again."""
    mean, std = compute_statistics(train.images)
    stated = stated or NetworkInput()
    seed_phase(recipe.seed, 0, 0, "teacher")
    return load_model(
        model_name,
        num_classes=train.num_classes,
        image_size=train.image_size,
        mean=stated.mean or mean,
        std=stated.std or std,
        in_chans=train.in_chans,
        interpolation=stated.interpolation or "bilinear",
        class_names=train.class_names,
    )


def _check_splits(train: ImageSet, test: LabelledImages | None) -> None:
    if test is None:
        return
    if test.class_names != train.class_names:
        odd = sorted(set(test.class_names) ^ set(train.class_names))
        raise UserError(f"--data {train.name}: training and test images are of different classes: {', '.join(odd[:3])}")


def made_from(
    recipe: TeacherRecipe, model_name: str, train: ImageSet, runtime: Runtime, stated: NetworkInput | None = None
) -> dict[str, Any]:
    """Everything that a trained teacher depends on, as JSON. Shapes tell two versions of a network apart."""
    recipe = recipe.for_size(train.image_size.short)
    model, info = _fresh_network(recipe, model_name, train, stated)
    code = own_network(model_name)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    said = {key: value for key, value in asdict(recipe).items() if key != "precision"}
    told = {"name": unplaced(info.name), "image_size": info.image_size.written}
    return {
        "recipe": {key: value for key, value in said.items() if (key, value) not in _UNSAID},
        # the pixels and class names are in `data`, and code of the user's own counts by content
        "network": {key: getattr(info, key) for key in _NETWORK} | told,
        **({} if code is None else {"code": source_files(code, "--teacher")}),
        "shapes": sha256(json.dumps(shapes).encode()).hexdigest(),
        "data": train.digest,
        "precision": _in_precision(recipe, runtime).precision,
    }


_UNSAID = {("style", "small"), ("style", "large"), ("crop_scale", 1.0), ("kept", ())}
"""of a resolved recipe: what teachers of before there was a choice have, and what its other values say"""


def _in_precision(recipe: TeacherRecipe, runtime: Runtime) -> Runtime:
    return runtime if recipe.precision == "same" else replace(runtime, precision=recipe.precision)
