"""What images are normalised with: the field's statistics of a known data set, or those of its pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


STATISTICS = {
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Statistics((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tiny-imagenet": Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""what the field's teachers are normalised with; any other data set's are computed from its training images"""

_CIFAR10_CLASSES = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
_SOME_CIFAR100_CLASSES = {"aquarium_fish", "lawn_mower", "maple_tree", "pickup_truck", "worm"}
_WORDNET_ID = re.compile(r"n\d{8}")


def known_statistics(class_names: Sequence[str], channels: int = 3) -> Statistics | None:
    """The field's statistics for a data set that its class names give away; None for any other, and for grey images."""
    if channels != 3:
        return None
    names = set(class_names)
    if names == _CIFAR10_CLASSES:
        return STATISTICS["cifar10"]
    if len(names) == 100 and names >= _SOME_CIFAR100_CLASSES:
        return STATISTICS["cifar100"]
    if all(_WORDNET_ID.fullmatch(name) for name in names):
        return STATISTICS["tiny-imagenet" if len(names) == 200 else "imagenet"]
    return None


def compute_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation (at least one grey level) of each channel over all pixels of (N, H, W, C) uint8."""
    total = torch.zeros(images.shape[-1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for pixels in images.flatten(0, 2).split(1 << 20):
        values = pixels.long()
        total += values.sum(0)
        squares += values.square().sum(0)
    count = images[..., 0].numel()
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).sqrt().clamp_min(1.0)
    return Statistics(tuple((mean / 255).tolist()), tuple((std / 255).tolist()))
