"""NAYER's and Fast's synthesis: a generator whose images must have the right statistics on average over the rounds.

Tran et al., arXiv:2310.00258, and Fang et al., arXiv:2112.07438. From the second round on, what is compared with a
BatchNorm's statistics is 0.1 of the batch's and 0.9 of an average of the rounds so far. `Before` is the form with
forward hooks, `After` the same class with three lines changed, and the averages out of the hooks.

    python kernels/examples/nayer_synthesis.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from comparison import check_equal, compare, parse
from torch import Tensor, nn

from dfkd_kernels import bn_stat_loss, freeze_teacher

BN_WEIGHT, CE_WEIGHT, MOMENTUM = 10.0, 0.5, 0.9
ROUND = 4
"""steps after which the averages are brought up to date"""
LATENT_DIM = 64


class AveragingHook:
    """How far a BatchNorm's input, averaged over the rounds, is from the statistics that the layer remembers."""

    distance: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.average: tuple[Tensor, Tensor] | None = None
        norm.register_forward_hook(self.measure)

    def measure(self, norm: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> None:
        """What the layer calls with its input (B, C, H, W): two passes over it, and a transposed copy."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        (x,) = inputs
        mean = x.mean((0, 2, 3))
        var = x.transpose(0, 1).flatten(1).var(1, unbiased=False)
        self.batch = mean.detach(), var.detach()
        if self.average is not None:
            mean = (1 - MOMENTUM) * mean + MOMENTUM * self.average[0]
            var = (1 - MOMENTUM) * var + MOMENTUM * self.average[1]
        self.distance = torch.norm(norm.running_mean - mean) + torch.norm(norm.running_var - var)

    def end_round(self) -> None:
        """Bring the average up to date with the last batch."""
        if self.average is None:
            self.average = self.batch
        else:
            mean, var = (
                MOMENTUM * old + (1 - MOMENTUM) * new for old, new in zip(self.average, self.batch, strict=True)
            )
            self.average = mean, var


class Before:
    """With hooks."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.hooks = [AveragingHook(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d)]

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.network(images)
        statistics = torch.stack([hook.distance for hook in self.hooks]).sum()
        return CE_WEIGHT * F.cross_entropy(logits, labels) + BN_WEIGHT * statistics

    def end_round(self) -> None:
        """Bring the averages up to date with the last batch."""
        for hook in self.hooks:
            hook.end_round()


class After:
    """With moments: the three changed lines. A momentum of 0 ignores the averages, which the first round has not."""

    def __init__(self, network: nn.Module) -> None:
        self.teacher = freeze_teacher(network)
        self.averages, self.momentum = self.teacher.targets, 0.0

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        logits, _, self.moments = self.teacher(images)
        statistics = bn_stat_loss(self.moments, self.teacher.targets, ema=(self.averages, self.momentum))
        return CE_WEIGHT * F.cross_entropy(logits, labels) + BN_WEIGHT * statistics

    def end_round(self) -> None:
        """Bring the averages up to date with the last batch."""
        batch = [(layer.mean().detach(), layer.var().detach()) for layer in self.moments]
        self.averages = [
            (mean.lerp(old_mean, self.momentum), var.lerp(old_var, self.momentum))
            for (mean, var), (old_mean, old_var) in zip(batch, self.averages, strict=True)
        ]
        self.momentum = MOMENTUM


def make_generator(image_size: int) -> nn.Module:
    """latents (B, D) -> images (B, 3, H, W) in [0, 1]; the seed is the caller's."""
    side = image_size // 4
    return nn.Sequential(
        nn.Linear(LATENT_DIM, 32 * side * side),
        nn.Unflatten(1, (32, side, side)),
        nn.BatchNorm2d(32),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(16, 3, 3, padding=1),
        nn.Sigmoid(),
    )


def synthesise(loss: Before | After, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """One step of the generator after the other, for images of this shape; gives each step's loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        generator = make_generator(images.shape[2]).to(images)
        latents = torch.randn(len(images), LATENT_DIM).to(images)
    optimizer = torch.optim.Adam(generator.parameters(), lr=4e-3)
    while True:
        for _ in range(ROUND):
            optimizer.zero_grad()
            value = loss(4.0 * generator(latents) - 2.0, labels)  # normalised: mean 1/2, deviation 1/4
            value.backward()
            optimizer.step()
            yield value.detach()
        loss.end_round()


def check_rounds(before: Before, after: After, images: Tensor, labels: Tensor) -> float:
    """`check_equal` in a first round without averages, one whose average is a batch, and one that has mixed two."""
    differences = []
    for scale in (1.0, 0.5, 2.0):
        differences.append(check_equal(before, after, scale * images, labels))
        before.end_round()
        after.end_round()
    return max(differences)


def main(argv: Sequence[str] | None = None) -> None:
    compare(parse(__doc__, argv), Before, After, synthesise, check_rounds)


if __name__ == "__main__":
    main()
