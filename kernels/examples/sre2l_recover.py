"""SRe2L's recover stage: images of given classes from noise, with statistics whose first layer counts ten times.

Yin et al., arXiv:2306.13092, Sec. 3.2. `before` has a forward hook on every BatchNorm, `after` is the same function
with three lines changed: the weights of the layers become an argument of the loss.

    python kernels/examples/sre2l_recover.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from comparison import Loss, compare, parse
from deepinversion import StatisticsHook
from torch import Tensor, nn

from dfkd_kernels import bn_stat_loss, freeze_teacher

BN_WEIGHT, FIRST_LAYER_WEIGHT = 0.01, 10.0
MAX_ROLL = 4
"""pixels by which the images are rolled at random before each pass, down and to the right"""


def layer_weights(num_layers: int) -> list[float]:
    """The first layer's distance counts more than the others': 10, 1, 1, ..."""
    return [FIRST_LAYER_WEIGHT] + [1.0] * (num_layers - 1)


def before(network: nn.Module) -> Loss:
    """With hooks."""
    hooks = [StatisticsHook(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d)]

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        logits = network(images)
        statistics = sum(w * hook.distance for w, hook in zip(layer_weights(len(hooks)), hooks, strict=True))
        return F.cross_entropy(logits, labels) + BN_WEIGHT * statistics

    return loss


def after(network: nn.Module) -> Loss:
    """With moments: the three changed lines."""
    teacher = freeze_teacher(network)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        logits, _, moments = teacher(images)
        statistics = bn_stat_loss(moments, teacher.targets, weights=layer_weights(len(moments)))
        return F.cross_entropy(logits, labels) + BN_WEIGHT * statistics

    return loss


def recover(loss: Loss, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """One Adam step on the images after the other; gives each step's loss."""
    images = images.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.1, betas=(0.5, 0.9))
    generator = torch.Generator().manual_seed(0)
    while True:
        down, right = torch.randint(-MAX_ROLL, MAX_ROLL + 1, (2,), generator=generator).tolist()
        optimizer.zero_grad()
        value = loss(images.roll((down, right), (2, 3)), labels)
        value.backward()
        optimizer.step()
        yield value.detach()


def main(argv: Sequence[str] | None = None) -> None:
    compare(parse(__doc__, argv), before, after, recover)


if __name__ == "__main__":
    main()
