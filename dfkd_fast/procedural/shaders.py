"""Shaders: each pixel's colour is a random composition of functions of its place.

The idea of image programs is Baradad et al.'s, NeurIPS 2022, arXiv:2211.16412, and of colours as a random network of
coordinates Stanley's (CPPN, 2007). Theirs were written by people; these are drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd_fast.procedural.canvas import Canvas, spread

WIDTH = 16
"""numbers that a layer hands to the next"""
LAYERS = 3


def shaders(canvas: Canvas) -> Tensor:
    """Pictures (N, C, H, W) in [0, 1]."""
    hidden = _places(canvas)
    for _ in range(LAYERS):
        fan_in = hidden.shape[1]
        weights = canvas.normal(WIDTH, fan_in) * canvas.uniform(1, 1, low=0.7, high=2.2) / fan_in**0.5
        hidden = _bent(torch.baddbmm(canvas.normal(WIDTH, 1), weights, hidden))
    out = torch.bmm(canvas.normal(canvas.channels + 1, WIDTH), hidden)
    common = canvas.uniform(1, 1)  # of all channels: from grey to many-coloured
    mixed = (common * out[:, :1] + (1 - common) * out[:, 1:]).unflatten(2, (canvas.height, canvas.width))
    sharp, bias = canvas.uniform(1, 1, 1, low=1.0, high=4.0), canvas.uniform(canvas.channels, 1, 1, low=-0.7, high=0.7)
    return torch.sigmoid(sharp * (2 * spread(mixed) - 1 + bias))


def _places(canvas: Canvas) -> Tensor:
    """What a shader knows of a pixel, (N, 6, HW): where it is, how far out, and in which of some repeated tiles."""
    x, y = canvas.plane(zoom=(0.7, 2.5))
    radius = torch.hypot(x, y)
    tiles = canvas.log_uniform(1, 1, low=0.6, high=4.0)
    inside = [2 * torch.frac(tiles * side + 16.0) - 1 for side in (x, y)]
    mirror = canvas.chance(0.5, 1, 1)
    return torch.stack([torch.where(mirror, x.abs(), x), y, radius, *inside, torch.sin(3 * radius)], dim=1).flatten(2)


def _bent(values: Tensor) -> Tensor:
    """Values (N, WIDTH, HW) through functions of several kinds, each by a share of the rows."""
    kinds = (torch.sin, torch.tanh, torch.abs, lambda part: torch.exp(-part.square()))
    return torch.cat([kind(part) for kind, part in zip(kinds, values.chunk(len(kinds), dim=1), strict=True)], dim=1)
