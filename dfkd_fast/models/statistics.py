"""BatchNorm statistics mixed with their running average over the pool, as in Fast and NAYER."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfkd_kernels import Moments, bn_stat_loss


class PoolStatistics(nn.Module):
    """Matches the teacher's BN statistics with (1 - momentum) x this batch + momentum x the pool so far.

    Fast (Fang et al., AAAI 2022) and NAYER: a batch need not have the running statistics by itself, only together with
    what the pool already holds. Until the first `update` the momentum is 0, which is the plain loss; it is a tensor on
    the device, so that a captured step sees the change. `targets`: (running_mean, running_var) per layer; none for a
    teacher without BatchNorm, whose loss is the empty sum, 0.
    """

    weight: Tensor
    pool: Tensor
    batch: Tensor
    layers: Tensor

    def __init__(self, targets: Sequence[tuple[Tensor, Tensor]], momentum: float) -> None:
        super().__init__()
        self.targets, self.momentum = targets, momentum
        self.sizes = [len(mean) for mean, _ in targets]
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("pool", torch.zeros(2, sum(self.sizes)))
        self.register_buffer("batch", torch.zeros(2, sum(self.sizes)), persistent=False)
        layers = [layer for layer, size in enumerate(self.sizes) for _ in range(size)]  # whose channel each is
        self.register_buffer("layers", torch.tensor(layers, dtype=torch.int64), persistent=False)

    def loss(self, moments: Sequence[Moments]) -> Tensor:
        """Sum over layers of the L2 norms of the mixed mean and variance differences -> scalar. Remembers the batch's
        own.
        """
        if not self.targets:
            return self.weight.new_zeros(())
        self._remember(moments)
        means, variances = (flat.split(self.sizes) for flat in self.pool)
        pooled = list(zip(means, variances, strict=True))
        return bn_stat_loss(moments, self.targets, ema=(pooled, self.weight))

    @torch.no_grad()
    def _remember(self, moments: Sequence[Moments]) -> None:
        """`Moments.mean` and `.var` of all layers behind one another: seven launches, where each layer takes six."""
        sums, sums_sq, shifts, counts = zip(*moments, strict=True)
        packed = torch.cat([*sums, *sums_sq, *shifts]).view(3, -1)
        delta, mean_sq = packed[:2] / torch.stack(counts)[self.layers]
        torch.add(packed[2], delta, out=self.batch[0])
        torch.sub(mean_sq, delta * delta, out=self.batch[1])

    @torch.no_grad()
    def update(self) -> None:
        """After a round: mix the last step's statistics into the pool's. The first update copies them."""
        self.pool.lerp_(self.batch, 1 - self.weight)
        self.weight.fill_(self.momentum)
