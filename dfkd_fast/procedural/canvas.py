"""A canvas and its random numbers: what every family of pictures draws with."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Canvas(NamedTuple):
    """A batch of pictures of one shape, and the generator that all their random numbers come from."""

    batch: int
    channels: int
    height: int
    width: int
    generator: torch.Generator

    @property
    def device(self) -> torch.device:
        """Where the pictures are made: the generator's device."""
        return self.generator.device

    def resized(self, height: int, width: int) -> Canvas:
        """The same batch at another size."""
        return self._replace(height=height, width=width)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high), (batch, *shape) float32."""
        drawn = torch.rand(self.batch, *shape, device=self.device, generator=self.generator)
        return low + (high - low) * drawn

    def log_uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """Numbers in [low, high) whose logarithm is uniform, (batch, *shape)."""
        return self.uniform(*shape, low=math.log(low), high=math.log(high)).exp()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (batch, *shape)."""
        return torch.randn(self.batch, *shape, device=self.device, generator=self.generator)

    def integers(self, most: int, *shape: int) -> Tensor:
        """Integers in [0, most), (batch, *shape) int64."""
        return torch.randint(most, (self.batch, *shape), device=self.device, generator=self.generator)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """True with a probability, (batch, *shape) bool."""
        return self.uniform(*shape) < probability

    def grid(self) -> tuple[Tensor, Tensor]:
        """x (1, 1, W) and y (1, H, 1) of pixel centres; the shorter side is [-1, 1], pixels are square."""
        side = min(self.height, self.width)
        y, x = ((2 * torch.arange(size, device=self.device) + 1 - size) / side for size in (self.height, self.width))
        return x[None, None, :], y[None, :, None]

    def plane(self, *, zoom: tuple[float, float] = (0.7, 1.5)) -> tuple[Tensor, Tensor]:
        """Coordinates x, y (batch, H, W) of a plane that each picture shows turned, moved and zoomed in its own way."""
        x, y = self.grid()
        angle, scale = self.uniform(1, 1, high=2 * math.pi), self.log_uniform(1, 1, low=zoom[0], high=zoom[1])
        right, down = angle.cos() * scale, angle.sin() * scale
        shift = self.uniform(2, 1, 1, low=-0.5, high=0.5)
        return x * right - y * down + shift[:, 0], x * down + y * right + shift[:, 1]


def spread(values: Tensor) -> Tensor:
    """Scale each map so that its least value is 0 and its greatest 1; (..., H, W) float32. A flat map becomes 0."""
    low, high = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-6)
