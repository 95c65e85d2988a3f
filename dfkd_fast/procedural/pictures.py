"""Pictures of all families: drawn, laid over each other, cut out and lit, in any shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd_fast.augment import draw_boxes, resized_crop
from dfkd_fast.procedural.canvas import Canvas, spread
from dfkd_fast.procedural.dead_leaves import dead_leaves
from dfkd_fast.procedural.fractals import flames, julia
from dfkd_fast.procedural.noise import coloured_noise, power_noise
from dfkd_fast.procedural.shaders import shaders
from dfkd_fast.procedural.waves import waves

FAMILIES: dict[str, Callable[[Canvas], Tensor]] = {
    "leaves": dead_leaves,
    "noise": coloured_noise,
    "waves": waves,
    "shaders": shaders,
    "flames": flames,
    "julia": julia,
}
"""name -> a function that draws pictures (N, C, H, W) in [0, 1]"""

CHUNK = 64
"""pictures drawn at once: their intermediate values stay in a core's cache"""


@torch.no_grad()
def draw_pictures(
    count: int,
    shape: tuple[int, int, int],
    *,
    generator: torch.Generator,
    families: Sequence[str] = tuple(FAMILIES),
    least_crop: float = 0.2,
) -> Tensor:
    """Random pictures (count, C, H, W) float32 in [0, 1], on the generator's device and a function of its state.

    A chunk has as many of each family. Half of the pictures have a piece of another laid over them, half are cut out
    (`least_crop`: the least share of the area) and enlarged; all are lit in their own way.
    """
    chunks = []
    for first in range(0, count, CHUNK):
        size = min(CHUNK, count - first)
        canvas = Canvas(size, *shape, generator)
        grounds = _of_all(canvas, families)
        things = grounds.roll(1, dims=0)
        both = torch.where(canvas.chance(0.5, 1, 1, 1) & _thing(canvas)[:, None], things, grounds)
        chunks.append(_lit(_cut_out(both, canvas, least_crop), canvas))
    return torch.cat(chunks)


def _of_all(canvas: Canvas, families: Sequence[str]) -> Tensor:
    """As many of each family, in a random order."""
    shares = [len(part) for part in torch.arange(canvas.batch).tensor_split(len(families))]
    drawn = [FAMILIES[name](canvas._replace(batch=n)) for name, n in zip(families, shares, strict=True) if n]
    order = torch.rand(canvas.batch, device=canvas.device, generator=canvas.generator).argsort()
    return torch.cat(drawn)[order]


def _thing(canvas: Canvas) -> Tensor:
    """Where a thing is seen before the ground, (N, H, W) bool: a blob near the middle, its edge bent by noise."""
    x, y = canvas.plane(zoom=(1.0, 2.5))
    stretch = canvas.log_uniform(1, 1, low=0.5, high=2.0)
    far = ((x * stretch) ** 2 + (y / stretch) ** 2).sqrt()
    bend = canvas.uniform(1, 1, high=1.5)
    return far + bend * (power_noise(canvas, 1, low=1.5)[:, 0] - 0.5) < 1.0


def _cut_out(pictures: Tensor, canvas: Canvas, least: float) -> Tensor:
    drawn, ratio = canvas.generator, canvas.height / canvas.width
    boxes = draw_boxes(canvas.batch, scale=least, device=canvas.device, height_to_width=ratio, generator=drawn)
    return torch.where(canvas.chance(0.5, 1, 1, 1), resized_crop(pictures, boxes), pictures)


def _lit(pictures: Tensor, canvas: Canvas) -> Tensor:
    """Some softened, some with their contrast stretched, all with a contrast, a brightness and a grain of their own."""
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pictures = torch.lerp(pictures, soft, canvas.uniform(1, 1, 1) * canvas.chance(0.6, 1, 1, 1))
    grey = pictures.mean(1, keepdim=True)
    pictures = torch.lerp(grey, pictures, canvas.uniform(1, 1, 1, low=0.3, high=1.2))
    stretched = spread(pictures.flatten(1).unsqueeze(1)).view_as(pictures)
    pictures = torch.where(canvas.chance(0.3, 1, 1, 1), stretched, pictures)
    contrast, light = canvas.uniform(1, 1, 1, low=0.5, high=1.3), canvas.uniform(1, 1, 1, low=-0.15, high=0.15)
    grain = canvas.normal(*pictures.shape[1:]) * canvas.uniform(1, 1, 1, high=0.03)
    middle = pictures.mean((1, 2, 3), keepdim=True)
    return ((pictures - middle) * contrast + middle + light + grain).clamp(0, 1)
