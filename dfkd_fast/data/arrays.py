"""Images that are decoded already: scikit-learn's digits, MedMNIST's .npz; any at other channels or size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.data.class_folders import Split
from dfkd_fast.data.files import middle_part
from dfkd_fast.errors import UserError
from dfkd_fast.files.arrays import NpzFile, are_images
from dfkd_fast.files.pictures import pillow_filter

_HELD_OUT = 0.3
"""share of each digit's scans that is the test split"""


def read_digits(size: Size, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 scans (8x8, 17 grey levels), stretched bilinearly: images (N, H, W, channels) uint8, labels
    (N,) int64, and whether each is of the test split (N,) bool: a fixed 30 % of each digit.
    """
    from sklearn.datasets import load_digits

    levels, digits = load_digits(return_X_y=True)
    scans = torch.from_numpy(levels).view(-1, 1, 8, 8) * (255 / 16)
    large = F.interpolate(scans, size=ImageSize.of(size), mode="bilinear").round().to(torch.uint8)
    images = large.permute(0, 2, 3, 1).expand(-1, -1, -1, channels).contiguous()
    shuffled = np.random.default_rng(0).permutation(len(digits))
    held_out = np.zeros(len(digits), dtype=bool)
    for digit in range(10):
        members = shuffled[digits[shuffled] == digit]
        held_out[members[: round(_HELD_OUT * len(members))]] = True
    return images, torch.from_numpy(digits).long(), torch.from_numpy(held_out)


def read_medmnist(path: Path, split: Split, *, flag: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images (N, H, W, C) uint8, labels (N,) int64 and class names, which are numbers, of a MedMNIST file.

    Raises UserError for a damaged file, several labels an image, volumes, and labels that are no class numbers.
    """
    what = f"{flag} {path}"
    file = NpzFile(path, what)
    needed = [f"{part}_{kind}" for part in ("train", "test") for kind in ("images", "labels")]
    if missing := [name for name in needed if name not in file.shapes]:
        held = ", ".join(list(file.shapes)[:6]) or "no array"
        raise UserError(f"{what}: no `{missing[0]}`, it holds {held}; expected {', '.join(needed)}, as MedMNIST has")
    images, name = torch.from_numpy(file.whole(f"{split}_images")), f"`{split}_images`"
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != torch.uint8 or not are_images(images.shape):
        shape = list(images.shape)
        raise UserError(f"{what}: {name} is {images.dtype} {shape}; expected uint8 (N, H, W) or (N, H, W, C)")
    labels = {part: _labels(file, part, what) for part in ("train", "test")}
    if len(labels[split]) != len(images):
        raise UserError(f"{what}: {len(images)} images but {len(labels[split])} labels in the {split} split")
    classes = 1 + int(torch.cat(list(labels.values())).max())
    return images, labels[split], tuple(map(str, range(classes)))


def _labels(file: NpzFile, split: str, what: str) -> Tensor:
    name, shape = f"{split}_labels", file.shapes[f"{split}_labels"]
    if shape[1:] not in ((), (1,)) or not shape[0]:
        raise UserError(f"{what}: `{name}` is {list(shape)}; expected one class for each image")
    found = torch.from_numpy(file.whole(name)).flatten()
    if found.is_floating_point() or found.dtype == torch.bool or not 0 <= int(found.min()) <= int(found.max()) < 2**20:
        raise UserError(f"{what}: `{name}` are no class numbers ({found.dtype}, {found.min()} to {found.max()})")
    return found.long()


def with_channels(images: Tensor, channels: int, what: str) -> Tensor:
    """(N, H, W, C) uint8 -> (N, H, W, channels) uint8: grey repeated as RGB, or the luma of RGB, as Pillow has it.

    Raises UserError, which begins with `what`, for other numbers of channels.
    """
    own = images.shape[-1]
    if own == channels:
        return images
    if {own, channels} != {1, 3}:
        raise UserError(f"{what}: its images have {own} channels, not {channels}; give --in-chans {own}")
    if channels == 3:
        return images.expand(-1, -1, -1, 3).contiguous()
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32)  # ITU-R 601-2, in 16 bits
    grey = [(chunk.int() * weights).sum(-1, keepdim=True).add_(0x8000) >> 16 for chunk in images.split(1024)]
    return torch.cat(grey).to(torch.uint8)


def resized(images: Tensor, image_size: Size | None, interpolation: str = "bilinear") -> Tensor:
    """(N, h, w, C) uint8 -> (N, H, W, C) uint8, with antialiasing (all filters but `nearest`); of images in another
    shape than `image_size` the middle.
    """
    size = None if image_size is None else ImageSize.of(image_size)
    if size is None or images.shape[1:3] == size:
        return images
    left, top, right, bottom = map(round, middle_part(images.shape[2], images.shape[1], size, None))
    images = images[:, top:bottom, left:right]
    if interpolation != "bilinear":
        return torch.cat([_by_pillow(channel, size, interpolation) for channel in images.unbind(3)], dim=3)
    scaled = [
        F.interpolate(chunk.permute(0, 3, 1, 2).float(), size=size, mode="bilinear", antialias=True)
        for chunk in images.split(1024)
    ]
    return torch.cat([chunk.round().to(torch.uint8) for chunk in scaled]).permute(0, 2, 3, 1).contiguous()


def _by_pillow(images: Tensor, size: ImageSize, interpolation: str) -> Tensor:
    """Grey images (N, h, w) uint8 -> (N, H, W, 1) uint8."""
    pictures = (Image.fromarray(image.numpy()) for image in images)
    scaled = [picture.resize((size.width, size.height), pillow_filter(interpolation)) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in scaled]))[..., None]
