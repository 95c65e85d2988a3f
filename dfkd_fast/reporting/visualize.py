"""Pictures of synthetic images: a row for each class, so that one look tells what a method has made of the teacher."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dfkd_fast.files.write import make_folder, write_file

_GAP = 2
_PAPER = 255
_EMPTY = 235  # cells that no image fills
_CAPTION_HEIGHT = 12
_TILE = 64  # least side of a tile, so that digits and CIFAR images can be seen
_MOST_ROWS = 100


def class_grid(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    per_class: int = 8,
    scale: int | None = None,
    captions: Tensor | None = None,
) -> Image.Image:
    """Draw the first `per_class` images of each class, one row a class from 0 on; at most 100 rows.

    `images` (N, H, W, C) uint8 as a pool keeps them, or (N, C, H, W) float in [0, 1]; C is 3, or 1 for grey, and
    of any other number the mean is drawn, in grey. `labels` (N,).
    `scale` repeats every pixel; without it small images are enlarged to 64 pixels. `captions` (N,), for instance the
    teacher's confidences, are written below the images with two decimals. Cells without an image are grey.
    """
    pixels, classes = _pixels(images), labels.cpu().numpy()
    height, width = pixels.shape[1:3]
    scale = scale or max(1, _TILE // max(height, width))
    tile = (height * scale, width * scale)
    step = (tile[0] + _GAP + (0 if captions is None else _CAPTION_HEIGHT), tile[1] + _GAP)
    rows = min(num_classes, _MOST_ROWS)
    canvas = np.full((rows * step[0] + _GAP, per_class * step[1] + _GAP, 3), _PAPER, dtype=np.uint8)
    texts: list[tuple[int, int, str]] = []
    values = None if captions is None else captions.float().cpu().tolist()
    for row in range(rows):
        chosen = np.flatnonzero(classes == row)[:per_class].tolist()
        for column in range(per_class):
            top, left = _GAP + row * step[0], _GAP + column * step[1]
            cell = canvas[top : top + tile[0], left : left + tile[1]]
            if column >= len(chosen):
                cell[:] = _EMPTY
                continue
            cell[:] = pixels[chosen[column]].repeat(scale, axis=0).repeat(scale, axis=1)
            if values is not None:
                texts.append((left, top + tile[0], f"{values[chosen[column]]:.2f}"))
    grid = Image.fromarray(canvas)
    pen = ImageDraw.Draw(grid)
    for left, top, text in texts:
        pen.text((left, top), text, fill=(60, 60, 60))
    return grid


def save_grid(
    path: Path,
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    per_class: int = 8,
    scale: int | None = None,
    captions: Tensor | None = None,
) -> None:
    """Write `class_grid` as a PNG file, whole or not at all."""
    grid = class_grid(images, labels, num_classes, per_class=per_class, scale=scale, captions=captions)
    make_folder(path.parent)
    content = BytesIO()
    grid.save(content, format="PNG")
    write_file(path, content.getvalue())


def _pixels(images: Tensor) -> np.ndarray:
    """(N, H, W, 3) uint8 on the CPU."""
    if images.is_floating_point():
        images = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    if images.shape[-1] not in (1, 3):
        images = images.float().mean(-1, keepdim=True).round().to(torch.uint8)
    return images.expand(-1, -1, -1, 3).cpu().numpy()
