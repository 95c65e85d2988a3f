"""Triton kernels of `cam_margin_loss`: one read of the features forward, one write of their gradient backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_PIXELS = 64
TILE = 2048


@triton.jit
def forward_kernel(
    features_ptr,  # (B, K, P), P = h * w pixels
    class_weights_ptr,  # (N, K) contiguous
    labels_ptr,  # (B,) int64
    target_ptr,  # (P,) float32, read only if HAS_MAP
    margins_ptr,  # (B, P) float32
    mask_ptr,  # (B, P) bool
    num_classes,
    num_channels,
    num_pixels,
    channel_stride,
    pixel_stride,
    target,
    HAS_MAP: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    in_map = pixel < num_pixels
    label = tl.load(labels_ptr + sample)
    in_classes = (label >= 0) & (label < num_classes)  # a wrong label must not read outside the weights
    features_ptr += sample * num_channels * num_pixels
    class_weights_ptr += tl.where(in_classes, label, 0) * num_channels
    margin = tl.zeros([PIXELS], tl.float32) + target
    if HAS_MAP:
        margin = tl.load(target_ptr + pixel, mask=in_map, other=0.0)
    for start in range(0, num_channels, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        in_row = channel < num_channels
        weight = tl.load(class_weights_ptr + channel, mask=in_row & in_classes, other=0.0).to(tl.float32)
        offset = channel[:, None].to(tl.int64) * channel_stride + pixel[None, :].to(tl.int64) * pixel_stride
        feature = tl.load(features_ptr + offset, mask=in_row[:, None] & in_map[None, :], other=0.0).to(tl.float32)
        margin -= tl.sum(weight[:, None] * feature, 0)
    offset = sample * num_pixels + pixel
    tl.store(margins_ptr + offset, tl.maximum(margin, 0.0), mask=in_map)
    tl.store(mask_ptr + offset, margin > 0.0, mask=in_map)


@triton.jit
def backward_kernel(
    grad_margins_ptr,  # (B, P) float32
    mask_ptr,  # (B, P) bool
    class_weights_ptr,  # (N, K) contiguous
    labels_ptr,  # (B,) int64
    grad_features_ptr,  # (B, K, P)
    num_classes,
    num_channels,
    num_pixels,
    channel_stride,
    pixel_stride,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    pixel = tl.program_id(2) * PIXELS + tl.arange(0, PIXELS)
    in_row = channel < num_channels
    in_map = pixel < num_pixels
    label = tl.load(labels_ptr + sample)
    in_classes = (label >= 0) & (label < num_classes)
    class_weights_ptr += tl.where(in_classes, label, 0) * num_channels
    weight = tl.load(class_weights_ptr + channel, mask=in_row & in_classes, other=0.0).to(tl.float32)
    offset = sample * num_pixels + pixel
    below = tl.load(mask_ptr + offset, mask=in_map, other=0) != 0
    grad = tl.where(below, -tl.load(grad_margins_ptr + offset, mask=in_map, other=0.0), 0.0)
    offset = channel[:, None].to(tl.int64) * channel_stride + pixel[None, :].to(tl.int64) * pixel_stride
    grad_features_ptr += sample * num_channels * num_pixels
    result = (weight[:, None] * grad[None, :]).to(grad_features_ptr.dtype.element_ty)
    tl.store(grad_features_ptr + offset, result, mask=in_row[:, None] & in_map[None, :])


def forward(
    features: Tensor, class_weights: Tensor, labels: Tensor, target_map: Tensor | None, target: float
) -> tuple[Tensor, Tensor]:
    """(margins, mask), both (B, h, w); `features` is contiguous or channels-last."""
    batch, channels, height, width = features.shape
    margins = features.new_empty((batch, height, width), dtype=torch.float32)
    mask = features.new_empty((batch, height, width), dtype=torch.bool)
    tile_channels, tile_pixels = tile(channels, height * width)
    forward_kernel[(batch, triton.cdiv(height * width, tile_pixels))](
        features,
        class_weights,
        labels,
        margins if target_map is None else target_map,
        margins,
        mask,
        class_weights.shape[0],
        channels,
        height * width,
        *channel_and_pixel_stride(features),
        target,
        HAS_MAP=target_map is not None,
        CHANNELS=tile_channels,
        PIXELS=tile_pixels,
    )
    return margins, mask


def backward(grad_margins: Tensor, mask: Tensor, class_weights: Tensor, labels: Tensor, grad_features: Tensor) -> None:
    """Fill `grad_features` (B, K, h, w), contiguous or channels-last."""
    batch, channels, height, width = grad_features.shape
    tile_channels, tile_pixels = tile(channels, height * width)
    backward_kernel[(batch, triton.cdiv(channels, tile_channels), triton.cdiv(height * width, tile_pixels))](
        grad_margins,
        mask,
        class_weights,
        labels,
        grad_features,
        class_weights.shape[0],
        channels,
        height * width,
        *channel_and_pixel_stride(grad_features),
        CHANNELS=tile_channels,
        PIXELS=tile_pixels,
    )


def channel_and_pixel_stride(features: Tensor) -> tuple[int, int]:
    """Strides of (B, K, h * w), of which the batch stride is K h w in both layouts."""
    _, channels, height, width = features.shape
    return (height * width, 1) if features.is_contiguous() else (1, channels)


def tile(num_channels: int, num_pixels: int) -> tuple[int, int]:
    """(channels, pixels) of a program's tile, powers of two."""
    pixels = min(triton.next_power_of_2(num_pixels), MAX_PIXELS)
    return min(triton.next_power_of_2(num_channels), TILE // pixels), pixels
