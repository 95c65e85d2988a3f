"""Colours: single ones, and palettes that turn a map of numbers into a picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfkd_fast.procedural.canvas import Canvas


def draw_colours(canvas: Canvas, count: int) -> Tensor:
    """Colours (N, count, C) in [0, 1]. Those of one picture belong together: they vary around a colour of its own, and
    brightness more than hue, as in photographs.
    """
    base = canvas.uniform(1, canvas.channels, low=0.1, high=0.9)
    light = canvas.normal(count, 1) * canvas.uniform(1, 1, low=0.05, high=0.35)
    hue = canvas.normal(count, canvas.channels) * canvas.uniform(1, 1, low=0.02, high=0.25)
    return (base + light + hue).clamp(0, 1)


def paint(values: Tensor, canvas: Canvas) -> Tensor:
    """Maps (N, H, W) in [0, 1] -> pictures (N, C, H, W) in [0, 1], by one of two palettes for each.

    Either a cosine palette, each channel a wave of the value; or a line through five colours.
    """
    return torch.where(canvas.chance(0.5, 1, 1, 1), _cosine(values, canvas), _through_colours(values, canvas))


def _cosine(values: Tensor, canvas: Canvas) -> Tensor:
    shape = (canvas.channels, 1, 1)
    middle, reach = canvas.uniform(*shape, low=0.3, high=0.7), canvas.uniform(*shape, low=0.1, high=0.5)
    turns, start = canvas.uniform(*shape, low=0.3, high=1.5), canvas.uniform(*shape)
    return (middle + reach * torch.cos(2 * math.pi * (turns * values[:, None] + start))).clamp(0, 1)


def _through_colours(values: Tensor, canvas: Canvas, knots: int = 5) -> Tensor:
    colours = draw_colours(canvas, knots)
    place = values.clamp(0, 1).flatten(1) * (knots - 1)  # (N, HW)
    below = place.long().clamp(max=knots - 2)
    share = (place - below)[..., None]
    rows = torch.arange(len(values), device=values.device)[:, None]
    mixed = torch.lerp(colours[rows, below], colours[rows, below + 1], share)
    return mixed.mT.reshape(len(values), -1, *values.shape[-2:])
