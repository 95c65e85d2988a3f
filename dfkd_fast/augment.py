"""Batched, differentiable augmentation of generated images; normalisation is the last op.

Crops and flips move pixels, so their backward is the same move the other way round: one gather each way, no scatter
and no sampling grid. Random parameters are tensors on the device, drawn in one place and passed in, so steps can be
captured.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet
from torch.nn import functional as F

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.errors import UserError
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.parallel.global_batch import LOCAL_BATCH, GlobalBatch


class CropFlip(NamedTuple):
    """Per-sample parameters of one batch: `shifts` (B, 2) int64 rows and columns in [-pad, pad], `flips` (B,) bool; and
    which of a view's fixed augmentations they are, `choices` (B,) int64, where it has such.
    """

    shifts: Tensor
    flips: Tensor
    choices: Tensor | None = None

    def part(self, global_batch: GlobalBatch) -> CropFlip:
        """Those of this rank's images."""
        return CropFlip(
            global_batch.local_rows(self.shifts),
            global_batch.local_rows(self.flips),
            global_batch.local_rows(self.choices),
        )


def draw_crop_flip(
    batch_size: int, *, pad: int, flip: bool, device: torch.device, generator: torch.Generator | None = None
) -> CropFlip:
    """Draw shifts uniformly from [-pad, pad] and flips with probability 1/2, by default from the device's default
    generator.
    """
    shifts = torch.randint(-pad, pad + 1, (batch_size, 2), device=device, generator=generator)
    if not flip:
        return CropFlip(shifts, torch.zeros(batch_size, dtype=torch.bool, device=device))
    return CropFlip(shifts, torch.randint(0, 2, (batch_size,), device=device, generator=generator).bool())


class _ShiftFlip(torch.autograd.Function):
    """out[b, :, y, x] = images[b, :, y + dy, x' + dx], zero outside, x' = W - 1 - x where flipped."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
        ctx.save_for_backward(shifts, flips)
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) + shifts[:, :1]
        columns = torch.arange(width, device=images.device).expand(len(images), width)
        columns = torch.where(flips[:, None], width - 1 - columns, columns) + shifts[:, 1:]
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        sample = torch.arange(len(images), device=images.device)[:, None, None]
        picked = images.permute(0, 2, 3, 1)[
            sample, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]
        ]
        moved = (picked * inside[..., None]).permute(0, 3, 1, 2)
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        return moved.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        shifts, flips = ctx.saved_tensors
        # The inverse move: a flipped sample moves its columns the same way again, any other the opposite way.
        columns = torch.where(flips, shifts[:, 1], -shifts[:, 1])
        inverse = torch.stack([-shifts[:, 0], columns], dim=1)
        return _ShiftFlip.apply(grad_outputs[0], inverse, flips), None, None


def shift_flip(images: Tensor, params: CropFlip) -> Tensor:
    """Zero-padded crop, then horizontal flip, per sample. Images (B, C, H, W) -> the same shape; differentiable.

    The same meaning as `dfkd_kernels.gather_augment`: output pixel (y, x) before the flip is input pixel (y + dy, x +
    dx).
    """
    return _ShiftFlip.apply(images, params.shifts, params.flips)


def batch_roll_flip(images: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Roll the whole batch by `shift` (2,) int64 rows and columns and mirror it where `flip` (0-dim bool):
    DeepInversion's jitter.
    """
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) - shift[0]) % height
    columns = (torch.arange(width, device=images.device) - shift[1]) % width
    columns = torch.where(flip, columns.flip(0), columns)
    return images.index_select(2, rows).index_select(3, columns)


def jitter(images: Tensor, *, reach: int, flip: bool = True) -> Tensor:
    """Roll the whole batch by up to `reach` pixels each way and, with `flip`, mirror it half of the time."""
    shift = torch.randint(-reach, reach + 1, (2,), device=images.device)
    mirrored = torch.rand((), device=images.device) < (0.5 if flip else 0.0)
    return batch_roll_flip(images, shift, mirrored)


def draw_boxes(
    batch_size: int,
    *,
    scale: float,
    device: torch.device,
    height_to_width: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Boxes (B, 4) of a random resized crop: top, left, height and width as shares of the image.

    As torchvision's RandomResizedCrop draws them, but not rounded to pixels: area uniform in [scale, 1], aspect ratio
    log-uniform in [3/4, 4/3] in pixels of images of that `height_to_width`, the first of ten draws that fits, else the
    whole image.
    """
    area = scale + (1 - scale) * torch.rand(batch_size, 10, device=device, generator=generator)
    ratio = torch.exp(math.log(4 / 3) * (2 * torch.rand(batch_size, 10, device=device, generator=generator) - 1))
    if height_to_width != 1:
        ratio = ratio * height_to_width
    sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=2)  # (B, 10, 2): height, width
    fits = (sizes <= 1).all(dim=2)
    first = fits.to(torch.uint8).argmax(dim=1)
    rows = torch.arange(batch_size, device=device)
    size = torch.where(fits[rows, first, None], sizes[rows, first], 1.0)
    return torch.cat([torch.rand(batch_size, 2, device=device, generator=generator) * (1 - size), size], dim=1)


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut a box out of each image and scale it to the whole, bilinearly. Images (B, C, H, W) -> the same shape and
    dtype; differentiable. Boxes (B, 4) as `draw_boxes` makes them.
    """
    dtype = torch.promote_types(images.dtype, torch.float32)
    top, left, height, width = boxes.to(dtype).unbind(dim=1)
    zero = torch.zeros_like(top)
    # a sampling grid has x before y, and [-1, 1] from edge to edge
    theta = torch.stack([width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    scaled = F.grid_sample(images.to(dtype), grid, mode="bilinear", padding_mode="border", align_corners=False)
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    return scaled.to(images.dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def random_resized_crop(images: Tensor, *, scale: float, global_batch: GlobalBatch = LOCAL_BATCH) -> Tensor:
    """`resized_crop` by boxes that are drawn anew. Images (B, C, H, W) -> the same shape and dtype; of a
    `global_batch` these are this rank's.
    """
    (height, width), count = images.shape[-2:], len(images) * global_batch.size
    boxes = draw_boxes(count, scale=scale, device=images.device, height_to_width=height / width)
    return resized_crop(images, global_batch.local_rows(boxes))


class Mix(NamedTuple):
    """How the images of one batch are mixed with each other."""

    partners: Tensor
    """(B,) int64: the row that each image is mixed with"""
    own: Tensor
    """(B, 1, H, W) in [0, 1]: the share of the image itself at each pixel, the partner has the rest"""

    def part(self, global_batch: GlobalBatch) -> Mix:
        """Those of this rank's images; partners are rows of the whole batch."""
        return Mix(global_batch.local_rows(self.partners), global_batch.local_rows(self.own))

    @property
    def shares(self) -> Tensor:
        """(B,): the share of the image itself in the whole mixture."""
        return self.own.mean(dim=(1, 2, 3))


def draw_mix(
    kind: Literal["cutmix", "mixup", "both"], batch_size: int, size: Size, *, alpha: float, device: torch.device
) -> Mix:
    """Draw partners, a permutation of the batch, and for each image its share, from Beta(alpha, alpha).

    mixup (Zhang et al., arXiv:1710.09412) blends the two, CutMix (Yun et al., arXiv:1905.04899) pastes a box of the
    partner, as large as its share, around a uniform centre, cut off at the image's edges; both: either, by a coin for
    each image. From the device's default generator, on the device.
    """
    partners = torch.rand(batch_size, device=device).argsort()
    concentration = torch.full((batch_size, 2), alpha, device=device)
    shares = Dirichlet(concentration, validate_args=False).sample()[:, 0, None]
    blended = shares[:, :, None, None].expand(-1, -1, *ImageSize.of(size))
    reach, centres = (1 - shares).sqrt() / 2, torch.rand(batch_size, 2, 1, device=device)
    rows, columns = (
        (torch.arange(side, device=device) + 0.5 - centre * side).abs() < reach * side
        for side, centre in zip(ImageSize.of(size), centres.unbind(dim=1), strict=True)
    )
    pasted = 1 - (rows[:, None, :, None] & columns[:, None, None, :]).to(shares.dtype)
    if kind == "both":
        return Mix(partners, torch.where(torch.rand_like(shares)[:, :, None, None] < 0.5, pasted, blended))
    return Mix(partners, pasted if kind == "cutmix" else blended)


def mixed(images: Tensor, mix: Mix, *, global_batch: GlobalBatch = LOCAL_BATCH) -> Tensor:
    """Mix images (B, C, H, W), as they are stored or normalised, with each other -> the same shape and dtype."""
    own, partners = mix.own.to(images.dtype), global_batch.all_gather(images)[mix.partners]
    return torch.lerp(partners, images, own)


class Augment(nn.Module):
    """What a network sees of an image in [0, 1]: random crop with zero padding, random flip, normalisation.

    Images (B, C, H, W) in [0, 1] -> view of the same shape, normalised with the teacher's mean and std. `crop_scale`
    below 1 puts a random resized crop in the place of the padded one. Of a `global_batch` these are this rank's images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        info: ModelInfo,
        *,
        pad: int = 4,
        flip: bool = True,
        crop_scale: float = 1.0,
        global_batch: GlobalBatch = LOCAL_BATCH,
    ) -> None:
        super().__init__()
        if not 0 < crop_scale <= 1:
            raise UserError(f"--method.crop-scale {crop_scale}: choose a share above 0 and up to 1")
        self.global_batch = global_batch
        self.pad, self.flip, self.crop_scale = pad if crop_scale == 1 else 0, flip, crop_scale
        self.register_buffer("mean", torch.tensor(info.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.crop_scale < 1:
            images = random_resized_crop(images, scale=self.crop_scale, global_batch=self.global_batch)
        whole = len(images) * self.global_batch.size
        drawn = draw_crop_flip(whole, pad=self.pad, flip=self.flip, device=images.device)
        return self.normalize(shift_flip(images, drawn.part(self.global_batch)))

    def normalize(self, images: Tensor) -> Tensor:
        """(images - mean) / std, channel by channel."""
        return (images - self.mean) / self.std

    def denormalize(self, view: Tensor) -> Tensor:
        """The inverse: view * std + mean."""
        return view * self.std + self.mean
