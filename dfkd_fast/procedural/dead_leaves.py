"""Dead leaves: opaque shapes that fall on each other, their sizes after a power law.

The model of natural images by Matheron, and Lee, Mumford, Huang (IJCV 2001), where sizes r have the density r^-3; as
pictures to learn from: Baradad et al., NeurIPS 2021, arXiv:2106.05963. Shapes, colours and textures are our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dfkd_fast.procedural.canvas import Canvas
from dfkd_fast.procedural.colours import draw_colours

LEAVES = 36
"""leaves of a picture"""
_SHAPES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.hypot,  # ellipses
    torch.maximum,  # rectangles
    torch.hypot,
    torch.add,  # diamonds
    lambda along, across: (along.sqrt() + across.sqrt()).square(),  # stars with four points
)
"""how far out a place is by its distances from a leaf's axes, both 0 or more; below 1 it is within"""


def dead_leaves(canvas: Canvas) -> Tensor:
    """Pictures (N, C, H, W) in [0, 1]."""
    owner = fallen(canvas)
    shown = owner[:, None].expand(-1, canvas.channels, -1, -1).flatten(2)  # (N, C, HW)
    colours = draw_colours(canvas, LEAVES + 1).mT.gather(2, shown)
    lit = colours.unflatten(2, owner.shape[1:]) + _texture(owner, canvas)[:, None]
    return lit.clamp(0, 1)


def fallen(canvas: Canvas) -> Tensor:
    """Which leaf is seen at each pixel, (N, H, W) int64; 0 is the ground."""
    x, y = canvas.grid()
    reach = (x.abs().amax(), y.abs().amax())
    radius = _radii(canvas, LEAVES)
    angle, stretch = canvas.uniform(LEAVES, high=2 * math.pi), canvas.log_uniform(LEAVES, low=1.0, high=3.0).sqrt()
    petals, phase = canvas.integers(5, LEAVES) + 2, canvas.uniform(LEAVES, high=2 * math.pi)
    depth = canvas.uniform(LEAVES, low=0.2, high=1.0)
    centre_x, centre_y = (canvas.uniform(LEAVES, low=-1.0, high=1.0) * side for side in reach)
    right_u, right_v = (part / (radius * stretch) for part in (angle.cos(), angle.sin()))
    up_v, up_u = (part * stretch / radius for part in (angle.cos(), angle.sin()))
    owner = torch.zeros(canvas.batch, canvas.height, canvas.width, dtype=torch.int64, device=canvas.device)
    for leaf in range(LEAVES):  # of which every third is a flower
        pick = (slice(None), leaf, None, None)
        u, v = x - centre_x[pick], y - centre_y[pick]
        along, across = u * right_u[pick] + v * right_v[pick], v * up_v[pick] - u * up_u[pick]
        if leaf % 3:
            inside = _SHAPES[leaf % len(_SHAPES)](along.abs_(), across.abs_()) < 1
        else:
            wave = torch.cos(petals[pick] * torch.atan2(across, along) + phase[pick])
            inside = torch.hypot(along, across) < 1 - depth[pick] * (0.5 + 0.5 * wave)
        owner.masked_fill_(inside, leaf + 1)
    return owner


def _radii(canvas: Canvas, leaves: int) -> Tensor:
    """Radii (N, leaves) of density r^-3 between limits of each picture's own; a side is 2."""
    least, most = canvas.log_uniform(1, low=0.08, high=0.3), canvas.log_uniform(1, low=0.5, high=1.5)
    share = canvas.uniform(leaves)
    return (least**-2 - share * (least**-2 - most**-2)) ** -0.5


def _texture(owner: Tensor, canvas: Canvas) -> Tensor:
    """Light and shade (N, H, W) on each leaf: a wave, and a slope from one side to the other."""
    x, y = canvas.grid()
    each = owner.flatten(1)
    angle, pace, height, slope = (
        values.gather(1, each).view_as(owner)
        for values in (
            canvas.uniform(LEAVES + 1, high=2 * math.pi),
            canvas.log_uniform(LEAVES + 1, low=1.0, high=30.0),
            canvas.uniform(LEAVES + 1, high=0.2) * canvas.chance(0.5, LEAVES + 1),
            canvas.uniform(LEAVES + 1, low=-0.3, high=0.3),
        )
    )
    along = x * angle.cos() + y * angle.sin()
    return height * torch.sin(pace * along + 7 * angle) + slope * along
