"""The pool's BN statistics: those of all layers at once are those of each."""

from __future__ import annotations

import torch

from dfkd_fast.models.statistics import PoolStatistics
from dfkd_kernels import batch_moments

SIZES = (5, 64, 3)


def test_all_layers_at_once() -> None:
    torch.manual_seed(0)
    statistics = PoolStatistics([(torch.randn(size), torch.rand(size)) for size in SIZES], 0.9)
    layers = [torch.randn(3 + size, size, 4, 2) for size in SIZES]
    moments = [batch_moments(x, mean) for x, (mean, _) in zip(layers, statistics.targets, strict=True)]
    statistics.loss(moments)
    assert torch.equal(statistics.batch[0], torch.cat([layer.mean() for layer in moments]))
    assert torch.equal(statistics.batch[1], torch.cat([layer.var() for layer in moments]))
    statistics.update()  # the first copies them
    assert torch.equal(statistics.pool, statistics.batch)
