"""DeepInversion: noise becomes images whose activations have the statistics that the network's BatchNorms remember.

Yin et al., arXiv:1912.08795, Eq. 2-4. `before` watches every BatchNorm with a forward hook, `after` is the same
function with three lines changed.

    python kernels/examples/deepinversion.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from comparison import Loss, compare, parse
from torch import Tensor, nn

from dfkd_kernels import bn_stat_loss, freeze_teacher

BN_WEIGHT, TV_WEIGHT = 10.0, 1e-3


class StatisticsHook:
    """How far the statistics of a BatchNorm's input are from those that it remembers."""

    distance: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        norm.register_forward_hook(self.measure)

    def measure(self, norm: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        """What the layer calls with its input (B, C, H, W): two passes over it, and a transposed copy."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        (x,) = inputs
        mean = x.mean((0, 2, 3))
        var = x.transpose(0, 1).flatten(1).var(1, unbiased=False)
        self.distance = torch.norm(norm.running_mean - mean) + torch.norm(norm.running_var - var)


def before(network: nn.Module) -> Loss:
    """With hooks."""
    hooks = [StatisticsHook(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d)]

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        logits = network(images)
        statistics = torch.stack([hook.distance for hook in hooks]).sum()
        return F.cross_entropy(logits, labels) + BN_WEIGHT * statistics + TV_WEIGHT * total_variation(images)

    return loss


def after(network: nn.Module) -> Loss:
    """With moments: the three changed lines."""
    teacher = freeze_teacher(network)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        logits, _, moments = teacher(images)
        statistics = bn_stat_loss(moments, teacher.targets)
        return F.cross_entropy(logits, labels) + BN_WEIGHT * statistics + TV_WEIGHT * total_variation(images)

    return loss


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, down and to the right. (B, C, H, W) -> scalar"""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


def invert(loss: Loss, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """One Adam step on the images after the other; gives each step's loss."""
    images = images.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.05)
    while True:
        optimizer.zero_grad()
        value = loss(images, labels)
        value.backward()
        optimizer.step()
        yield value.detach()


def main(argv: Sequence[str] | None = None) -> None:
    compare(parse(__doc__, argv), before, after, invert)


if __name__ == "__main__":
    main()
