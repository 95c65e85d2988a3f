"""Waves: sums of gratings, rings and checks on a plane that noise has bent, through a palette."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfkd_fast.procedural.canvas import Canvas, spread
from dfkd_fast.procedural.colours import paint
from dfkd_fast.procedural.noise import power_noise

WAVES = 3
"""waves of a picture"""


def waves(canvas: Canvas) -> Tensor:
    """Pictures (N, C, H, W) in [0, 1]."""
    x, y = canvas.plane()
    bend = canvas.uniform(1, 1, high=0.8)
    bent = power_noise(canvas, 2, low=1.5)
    x, y = x + bend * (bent[:, 0] - 0.5), y + bend * (bent[:, 1] - 0.5)
    height = torch.zeros_like(x)
    for _ in range(WAVES):
        height += canvas.uniform(1, 1, low=0.2) * _wave(x, y, canvas)
    sharp = canvas.log_uniform(1, 1, low=0.5, high=8.0)  # from soft waves to stripes
    return paint(spread(torch.tanh(sharp * height)), canvas)


def _wave(x: Tensor, y: Tensor, canvas: Canvas) -> Tensor:
    """A grating, rings around a centre, or checks, (N, H, W) in [-1, 1]."""
    pace, phase = canvas.log_uniform(1, 1, low=1.5, high=14.0), canvas.uniform(1, 1, high=2 * math.pi)
    angle, centre = canvas.uniform(1, 1, high=2 * math.pi), canvas.uniform(2, 1, 1, low=-1.0)
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    grating = torch.sin(pace * along + phase)
    rings = torch.sin(pace * torch.hypot(x - centre[:, 0], y - centre[:, 1]) + phase)
    kind = canvas.integers(3, 1, 1)
    return torch.where(kind == 0, grating, torch.where(kind == 1, rings, grating * torch.cos(pace * across)))
