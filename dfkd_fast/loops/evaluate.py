"""Evaluation on real test images. Its figures are reported; they never choose a model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd_fast.config import TrainConfig
from dfkd_fast.data import IN_MEMORY, open_test
from dfkd_fast.errors import UserError
from dfkd_fast.image_stream import Decoding, LabelledImages
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.runtime import Runtime
from dfkd_fast.switches import named_operator
from dfkd_kernels import gather_augment


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


def evaluation_images(config: TrainConfig, runtime: Runtime) -> LabelledImages | None:
    """The images that a run evaluates on; None without `--data`.

    A run that trains its teacher keeps them in memory: the training images, of which there are more, are there, too.
    """
    if not config.data:
        return None
    choice = config.eval
    found = open_test(
        config.data,
        image_size=config.image_size,
        decoding=Decoding(decoder=choice.decoder, workers=choice.workers, resize=choice.resize),
        device=runtime.device,
        in_memory=math.inf if config.train_teacher else IN_MEMORY,
    )
    return found.resident(runtime.device)


def agreement(first: Evaluation, second: Evaluation) -> float:
    """Share of images to which two networks give the same class. Both must have seen the same images."""
    return (first.predictions == second.predictions).double().mean().item()


def check_fit(images: LabelledImages, info: ModelInfo, flag: str) -> None:
    """Raise UserError, naming `flag`, where classes or sizes of images and network differ."""
    if images.num_classes != info.num_classes:
        raise UserError(f"{flag} {images.name}: {images.num_classes} classes, but {info.name} knows {info.num_classes}")
    if images.image_size != info.image_size:
        sizes = f"{images.image_size} pixels a side, but {info.name} takes {info.image_size}"
        raise UserError(f"{flag} {images.name}: {sizes}; give --image-size {info.image_size}")


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
