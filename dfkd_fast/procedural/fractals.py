"""Fractals: attractors of random iterated functions, and Julia sets.

Attractors as pictures to learn from: Kataoka et al., ACCV 2020, arXiv:2101.08515; the bent affine maps and the
logarithm of the density are those of Draves' fractal flames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dfkd_fast.procedural.canvas import Canvas, spread
from dfkd_fast.procedural.colours import paint

MAPS = 4
"""functions of an attractor"""
POINTS = 1024
"""points that wander at once"""
WANDERING, COUNTED = 8, 12
"""steps before a point is counted, and with it"""
TURNS = 20
"""iterations of a Julia set"""


def flames(canvas: Canvas) -> Tensor:
    """Attractors (N, C, H, W) in [0, 1] by the chaos game: places that are visited often shine, on a ground.

    Each map moves its share of the points, which are shuffled before the next step: so each meets maps at random.
    """
    turn, lean = canvas.uniform(MAPS, 1, high=2 * math.pi), canvas.uniform(MAPS, 1, low=-0.5, high=0.5)
    size, shift = canvas.uniform(2, MAPS, 1, low=0.3, high=0.9), canvas.uniform(2, MAPS, 1, low=-1.0)
    bow = canvas.uniform(MAPS, 1) * canvas.chance(0.5, MAPS, 1)
    wide, high = size.unbind(1)
    x_x, x_y, y_x, y_y = wide * turn.cos(), -wide * (turn + lean).sin(), high * turn.sin(), high * (turn + lean).cos()
    x, y = canvas.uniform(2, MAPS, POINTS // MAPS, low=-1.0).unbind(1)
    seen = torch.zeros(canvas.batch, canvas.height * canvas.width, device=canvas.device)
    for step in range(WANDERING + COUNTED):
        x, y = x_x * x + x_y * y + shift[:, 0], y_x * x + y_y * y + shift[:, 1]
        x, y = torch.lerp(x, torch.sin(2 * x), bow), torch.lerp(y, torch.sin(2 * y), bow)
        if step >= WANDERING:
            _count(seen, x.flatten(1), y.flatten(1), canvas)
        order = torch.rand(POINTS, device=canvas.device, generator=canvas.generator).argsort()
        x, y = (part.flatten(1)[:, order].view_as(part) for part in (x, y))
    return paint(spread(torch.log1p(seen).view(canvas.batch, canvas.height, canvas.width)), canvas)


def _count(seen: Tensor, x: Tensor, y: Tensor, canvas: Canvas) -> None:
    """Add points (N, P) of [-2, 2] to the counts of their pixels (N, HW)."""
    scale = min(canvas.height, canvas.width) / 4
    column, row = ((part * scale + side / 2).floor().long() for part, side in ((x, canvas.width), (y, canvas.height)))
    inside = (column >= 0) & (column < canvas.width) & (row >= 0) & (row < canvas.height)
    seen.scatter_add_(1, torch.where(inside, row * canvas.width + column, 0), inside.to(seen.dtype))


def julia(canvas: Canvas) -> Tensor:
    """Julia sets of z^2 + c (N, C, H, W) in [0, 1]: how soon a place escapes, through a palette.

    c lies near the edge of the Mandelbrot set's main cardioid, where the sets are rich.
    """
    x, y = canvas.plane(zoom=(0.4, 1.5))
    angle, beyond = canvas.uniform(1, 1, high=2 * math.pi), canvas.uniform(1, 1, low=0.95, high=1.15)
    c_x = beyond * (angle.cos() / 2 - (2 * angle).cos() / 4)
    c_y = beyond * (angle.sin() / 2 - (2 * angle).sin() / 4)
    soon = torch.zeros_like(x)
    for _ in range(TURNS):
        x, y = (x * x - y * y + c_x).clamp(-4, 4), (2 * x * y + c_y).clamp(-4, 4)
        soon += torch.exp(-(x * x + y * y))  # smooth, where counting would give bands
    return paint(spread(soon), canvas)
