"""Synthetic images without a student: a method's warm-up for as long as it takes, stopped and gone on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dfkd_fast.catalog import METHODS
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.errors import UserError, one_of
from dfkd_fast.files.digests import of_json
from dfkd_fast.methods.base import Method
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.pool.disk.files import PoolFiles
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.quantize import to_bytes
from dfkd_fast.rng import seed_phase
from dfkd_fast.training.assemble import class_vectors, load_method, load_teacher, make_method, runtime_of
from dfkd_fast.training.checkpoints.checkpoint import PHASES, Checkpoint, latest_checkpoint, save_checkpoint
from dfkd_fast.training.checkpoints.identity import content_identity, settings_identity
from dfkd_fast.training.checkpoints.state_tensors import (
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
)
from dfkd_fast.training.inner import InnerLoop, bind, watched
from dfkd_fast.training.interrupt import StopSignals
from dfkd_fast.training.judge import check_frozen, check_teacher, suspicions

EVERY = 60.0
"""seconds between two checkpoints, which stand at the ends of epochs"""
Say = Callable[[str], None]


class NoStudent(nn.Module):
    """Stands where a method expects a student, which it must not ask."""

    def forward(self, view: Tensor) -> Tensor:
        raise UserError("--method: asks its student while it makes images, and here is none; choose another")


class Synthesized(NamedTuple):
    """What was made."""

    files: PoolFiles
    """images (H, W, C) uint8 and labels, `count` of them"""
    info: ModelInfo
    """what the teacher expects, class names included"""
    teacher: str
    """SHA-256 of the teacher's tensors"""
    agreement: float
    """share of the images that the teacher names as they were meant"""


def synthesize(
    config: TrainConfig[Any], count: int, folder: Path, *, pictures: bool, signals: StopSignals, say: Say
) -> Synthesized:
    """Make `count` images in `folder`, or go on with what a stopped call has made there. `pictures`: they are to become
    picture files, which have 1 or 3 channels.

    The same config and seed make the same images, bit for bit on one kind of machine, stopped or not. Raises UserError
    for what cannot be made, and where the folder holds images of another config or teacher.
    """
    method_class = load_method(config.method_name)
    _check_method(config, method_class)
    config = _warming_up(config, count)
    config.check()
    runtime = runtime_of(config)
    if runtime.world_size > 1:
        raise UserError(f"synth: for one process, not {runtime.world_size}; run several, each with a --seed of its own")
    model, info = load_teacher(config, None, runtime, on_step=signals.check)
    if pictures and info.in_chans not in (1, 3):
        raise UserError(f"--out: pictures have 1 or 3 channels, and {info.name} takes {info.in_chans}; choose NAME.npz")
    check_teacher(model, info, method_class, config, None)
    vectors = class_vectors(config, method_class, info.num_classes, info.class_names)
    known = settings_identity(config, runtime) | content_identity(config, model, info, vectors, None)
    teacher = FrozenNet(model, info, runtime, precision=config.teacher_precision)
    check_frozen(teacher, runtime)
    for line in (f"teacher {info.name}: {info.described()}", *suspicions(teacher, runtime)):
        say(line)
    method = make_method(config, method_class, teacher, NoStudent(), runtime, vectors=vectors[0])
    if len(method.pools()) != 1:
        raise UserError(f"--method {config.method_name}: makes images of several sizes; choose another")
    able = sum(map(method.rounds, range(config.method.warmup_epochs - 2))) * config.method.synthesis_batch_size
    if able < count:
        raise UserError(f"--n {count}: this recipe makes {able} without a student; choose fewer, or a larger budget")
    making = Making(method, bind(method, runtime), config.seed, count, folder, of_json(known), signals, say)
    making.run()
    files = PoolFiles(folder / "pool")
    return Synthesized(files, info, known["teacher"]["tensors"], _agreement(files, teacher, count))


class Making:
    """Images being made: a method's rounds, the journal that keeps them, and checkpoints of both."""

    def __init__(
        self,
        method: Method,
        engines: Sequence[InnerLoop],
        seed: int,
        count: int,
        folder: Path,
        identity: str,
        signals: StopSignals,
        say: Say,
    ) -> None:
        self.method, self.engines, self.seed, self.count, self.say = method, engines, seed, count, say
        self.folder, self.identity, self.signals = folder, identity, signals

    def run(self) -> None:
        """Make what is missing. The newest checkpoint is gone on with; it is that of the same images, or an error."""
        epoch = 0
        checkpoint = latest_checkpoint(self.folder / "checkpoints")
        journal = Journal(self.folder / "pool", capacity=self.count, replace=checkpoint is None)
        try:
            if checkpoint is not None:
                epoch = self._take_up(checkpoint, journal)
                self.say(f"goes on after {journal.count:,} of {self.count:,} images")
            saved = time.monotonic()
            while journal.count < self.count:
                self._epoch(epoch, journal)
                epoch += 1
                if time.monotonic() - saved > EVERY or journal.count == self.count:
                    self._save(epoch, journal)
                    saved = time.monotonic()
        finally:
            journal.close()

    def _epoch(self, epoch: int, journal: Journal) -> None:
        seed_phase(self.seed, 0, epoch, "synthesis")
        with watched(self.engines, lambda terms, images: self.signals.check()):
            self.method.train()
            for batch in self.method.synthesize(epoch):
                for engine in self.engines:
                    engine.taken(epoch)
                images = batch.images[: self.count - journal.count]
                if len(images):  # the last batch may have more than are asked for
                    labels = batch.labels[: len(images)].to("cpu", torch.int64, copy=True)
                    journal.append({"images": to_bytes(images, "round").cpu(), "labels": labels})
        self.say(f"{journal.count:,} of {self.count:,} images")

    def _save(self, epoch: int, journal: Journal) -> None:
        tensors = module_tensors("method", self.method)
        for number, engine in enumerate(self.engines):
            if engine.lasting is not None:
                tensors |= optimizer_tensors(f"synthesis_optimizer-{number}", engine.lasting)
        record = {"pool": journal.flush(), "identity": self.identity}
        checkpoint = Checkpoint(epoch=epoch, phase=PHASES[0], tensors=tensors, record=record)
        save_checkpoint(self.folder / "checkpoints", checkpoint, keep=2, flag="--out", go_on="give the command again")

    def _take_up(self, checkpoint: Checkpoint, journal: Journal) -> int:
        if checkpoint.record["identity"] != self.identity:
            raise UserError(
                f"--out: {self.folder} holds images of a stopped call with other settings, teacher or code; delete it, "
                "or choose another --out"
            )
        load_module("method", self.method, checkpoint.tensors)
        for number, engine in enumerate(self.engines):
            if engine.lasting is not None:
                load_optimizer(f"synthesis_optimizer-{number}", engine.lasting, checkpoint.tensors)
        journal.restore(checkpoint.record["pool"])
        return checkpoint.epoch


def _check_method(config: TrainConfig[Any], method: type[Method]) -> None:
    """Raise UserError for a method that cannot make images alone."""
    if not method.supports.without_student:
        able = [name for name in METHODS if load_method(name).supports.without_student]
        raise UserError(f"--method {config.method_name}: makes its images with a student; choose {one_of(able)}")
    if config.train_teacher:
        raise UserError("--train-teacher: synth takes a teacher that is trained; give --teacher-weights")


def _warming_up(config: TrainConfig[Any], count: int) -> TrainConfig[Any]:
    """The config with as many warm-up epochs as can be needed, so that no student is asked, and none is trained.

    A round or more in each makes a batch; the last two epochs of a warm-up may be different ones.
    """
    epochs = -(-count // config.method.synthesis_batch_size) + 2
    recipe = replace(config.method, warmup_epochs=epochs, epochs=epochs + 1)
    if getattr(recipe, "warmup_rounds", 1) < 1:
        recipe = replace(recipe, warmup_rounds=1)
    return replace(config, method=recipe, student=config.teacher, student_args=config.teacher_args, data=None)


@torch.no_grad()
def _agreement(files: PoolFiles, teacher: FrozenNet, count: int) -> float:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (teacher.info.mean, teacher.info.std))
    same, device = 0, next(iter(teacher.net.parameters())).device
    for _, block in files.read(0, count):
        for images, labels in zip(block["images"].split(128), block["labels"].split(128), strict=True):
            view = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
            logits = teacher.logits(view.to(device))
            same += int((logits.argmax(1).cpu() == labels).sum())
    return same / count
