"""Evaluation on real test images of the network that a run saves. Its figures never choose a model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dfkd_fast.config.train import NetworkInput, TrainConfig
from dfkd_fast.data.class_order import ClassOrder, number_hint, stated_order
from dfkd_fast.data.splits import IN_MEMORY, load_test_split
from dfkd_fast.data.stream import Classed, Decoding, LabelledImages
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.device.switches import named_operator
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Method
from dfkd_fast.methods.exchange import DeployedHead
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.text.class_names import first_synonym, spoken_names
from dfkd_kernels import gather_augment

S = TypeVar("S", bound=Classed)


@dataclass(frozen=True)
class Evaluation:
    """Accuracies, as shares in [0, 1]."""

    top1: float
    """share of images whose highest logit is the label's"""
    top5: float
    """share of images whose label is among the five highest logits (all of them where there are fewer classes)"""
    per_class: tuple[float, ...]
    """top-1 of each class; nan for a class without images"""
    predictions: Tensor
    """(N,) int64 on the CPU: the class of the highest logit, in the order of the images"""


@torch.no_grad()
@named_operator()
def evaluate(
    model: Callable[[Tensor], Tensor],
    images: LabelledImages,
    *,
    info: ModelInfo,
    runtime: Runtime,
    batch_size: int = 512,
    shared: bool = False,
    flag: str = "--data",
) -> Evaluation:
    """Classify every image once, without augmentation, in the runtime's precision.

    With `shared` all ranks call this and each classifies its share of the images; the result is that of all. Else the
    rank does it alone.

    `model` maps normalised images (B, C, H, W) to logits (B, K); a module is put into evaluation mode meanwhile. Every
    batch has the same shape (the last one repeats an image, which is not counted) and nothing waits for the device
    before the end. Raises UserError, naming `flag`, where classes or sizes of images and network differ.
    """
    check_fit(images, info, flag)
    rows = _share(len(images), runtime) if shared else range(len(images))
    batch_size = max(1, min(batch_size, len(rows)))
    indices = torch.arange(batch_size, device=runtime.device)
    still = indices.new_zeros(batch_size, 2), torch.zeros_like(indices, dtype=torch.bool)
    top, done = indices.new_zeros(len(images), min(5, info.num_classes)), rows.start
    with _evaluating(model):
        for pixels, _ in images.batches(batch_size, rows) if rows else ():  # fewer images than ranks
            view = gather_augment(
                _on_device(pixels, runtime),
                indices.clamp_max(len(pixels) - 1),
                *still,
                info.mean,
                info.std,
                pad=0,
                dtype=runtime.master_dtype,
                memory_format=runtime.memory_format,
            )
            with runtime.autocast():
                logits = model(view)
            top[done : done + len(pixels)] = logits.topk(top.shape[1]).indices[: len(pixels)]
            done += len(pixels)
    assert done == rows.stop, f"{images.name}: {done - rows.start} of {len(rows)} images came"
    return _summarised((runtime.all_reduce(top) if shared else top).cpu(), images)


class Expected(NamedTuple, Generic[S]):
    """Images as a network expects them."""

    images: S
    notes: list[str]
    """what was done to them, or could not be told, in lines for the user"""


def as_expected(images: S, info: ModelInfo, order: ClassOrder | None, *, flag: str = "--data") -> Expected[S]:
    """`images` in the class order of a network. `order` is what `--class-order` states; without it
    the classes stand as the network's file lists them, else sorted as text.

    Raises UserError where `order` lists other classes than the images have.
    """
    notes, own = [], images.class_names
    source = f"{flag} {images.name}"
    if order is not None:
        images = images.in_order(order.of(own, source))
    elif sorted(info.class_names) == sorted(own):
        if info.class_names != own:
            images = images.in_order(info.class_names)
            notes.append(f"{source}: classes in the order of the network's: {_first(info.class_names)}")
    elif info.class_names and info.class_names != tuple(map(first_synonym, spoken_names(own) or ())):
        ours, theirs = _first(own), _first(info.class_names)
        notes.append(f"{source}: classes {ours} are taken in this order for the network's {theirs}; --class-order")
    elif (hint := number_hint(own, source)) is not None:
        notes.append(hint)
    return Expected(images, notes)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def evaluation_images(config: TrainConfig, runtime: Runtime, info: ModelInfo | None = None) -> Expected[Any] | None:
    """The images that a run evaluates on, as the network `info` expects them; None without `--data`.

    Where the teacher is yet to be trained there is no `info`: what flags and images say decides then.

    A run that trains its teacher keeps them in memory: the training images, of which there are more, are there, too.
    """
    if not config.data:
        return None
    choice = config.eval
    interpolation = info.interpolation if info is not None else config.interpolation or "bilinear"
    found = load_test_split(
        config.data,
        image_size=config.image_size if info is None else info.image_size,
        decoding=Decoding(
            decoder=choice.decoder, workers=choice.workers, resize=choice.resize, interpolation=interpolation
        ),
        device=runtime.device,
        channels=stated_channels(config) if info is None else info.in_chans,
        in_memory=math.inf if config.train_teacher else IN_MEMORY,
    )
    if info is None:
        return Expected(in_stated_order(found, config).resident(runtime.device), [])
    images, notes = as_expected(found, info, stated_order(config.class_order))
    return Expected(images.resident(runtime.device), notes)


def in_stated_order(images: S, stated: NetworkInput) -> S:
    """Images that a teacher is trained or tested on, with their classes as `--class-order` says.

    Raises UserError for an order of other classes.
    """
    order = stated_order(stated.class_order)
    return images if order is None else images.in_order(order.of(images.class_names, f"--data {images.name}"))


def stated_channels(stated: NetworkInput) -> int:
    """The channels that a teacher is to be trained with: what flags say, else those of RGB."""
    return stated.in_chans or len(stated.mean or ()) or 3


def agreement(first: Evaluation, second: Evaluation) -> float:
    """Share of images to which two networks give the same class. Both must have seen the same images."""
    return (first.predictions == second.predictions).double().mean().item()


def check_fit(images: LabelledImages, info: ModelInfo, flag: str) -> None:
    """Raise UserError, naming `flag`, where classes or sizes of images and network differ."""
    check_classes(images, info, flag)
    if images.in_chans != info.in_chans:
        raise UserError(f"{flag} {images.name}: {images.in_chans} channels, but {info.name} takes {info.in_chans}")
    if images.image_size != info.image_size:
        sizes = f"images of {images.image_size} pixels, but {info.name} takes {info.image_size}"
        raise UserError(f"{flag} {images.name}: {sizes}; give --image-size {info.image_size.flag}")


def check_classes(images: Classed, info: ModelInfo, flag: str) -> None:
    """Raise UserError, naming `flag`, where images and network have not as many classes."""
    count = len(images.class_names)
    if count != info.num_classes:
        raise UserError(f"{flag} {images.name}: {count} classes, but {info.name} knows {info.num_classes}")


def _share(count: int, runtime: Runtime) -> range:
    """The images of this rank: equal shares, in order."""
    rank, ranks = runtime.rank, runtime.world_size
    return range(rank * count // ranks, (rank + 1) * count // ranks)


def _on_device(pixels: Tensor, runtime: Runtime) -> Tensor:
    if pixels.is_cuda or runtime.device.type == "cpu":  # resident, or decoded there
        return pixels.to(runtime.device)
    return pixels.pin_memory().to(runtime.device, non_blocking=True)  # a copy from pageable memory would wait


@contextlib.contextmanager
def _evaluating(model: object) -> Iterator[None]:
    """Evaluation mode for a module, and afterwards each part's own mode again."""
    training = [part for part in model.modules() if part.training] if isinstance(model, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _summarised(top: Tensor, images: LabelledImages) -> Evaluation:
    """`top` (N, k) int64: the classes of the highest logits, best first."""
    hits = top == images.labels[:, None]
    counts = torch.bincount(images.labels, minlength=images.num_classes)
    correct = torch.bincount(images.labels[hits[:, 0]], minlength=images.num_classes)
    return Evaluation(
        top1=hits[:, 0].double().mean().item(),
        top5=hits.any(1).double().mean().item(),
        per_class=tuple((correct.double() / counts).tolist()),
        predictions=top[:, 0].clone(),
    )


def deployed(method: Method, student: nn.Module) -> nn.Module:
    """That network, as it is now."""
    head = method.student_head()
    return head.deploy(student) if isinstance(head, DeployedHead) else student


def deployed_name(method: Method, student: str) -> str:
    """What `load_model` calls it, where the student's own name is `student`."""
    head = method.student_head()
    return head.deployed_name(student) if isinstance(head, DeployedHead) else student
