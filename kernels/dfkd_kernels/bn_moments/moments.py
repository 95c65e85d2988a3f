"""Batch moments of one layer, as sums about a shift: they add across splits, micro-batches and devices."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Moments(NamedTuple):
    """Sums over the batch and all positions of one layer's values x, per channel; C channels.

    Sums about a shift near the mean keep the digits that sum(x^2) - sum(x)^2 loses, and need no division per element.
    """

    sum: Tensor
    """sum of x - shift, (C,), float32 (float64 for float64 inputs); differentiable"""
    sum_sq: Tensor
    """sum of (x - shift)^2, (C,); differentiable"""
    shift: Tensor
    """(C,), a constant"""
    count: Tensor  # type: ignore[assignment]  # tuple.count, of no use here
    """values per channel, (), a constant"""

    def mean(self) -> Tensor:
        """Batch mean per channel, (C,)."""
        return self.shift + self.sum / self.count

    def var(self, unbiased: bool = False) -> Tensor:
        """Batch variance per channel, (C,); divided by count - 1 instead of count if `unbiased`."""
        delta = self.sum / self.count
        var = self.sum_sq / self.count - delta * delta
        return var * (self.count / (self.count - 1)) if unbiased else var
