"""Shared set-up of the pool benchmarks: a runtime, a view, images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dfkd_fast.device.runtime import Runtime, make_runtime
from dfkd_fast.models.factory import ModelInfo
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.pool import Pool
from dfkd_fast.pool.stream import AugmentSpec

BATCH, PAD = 256, 4
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def runtime_on(device: str = "cpu") -> Runtime:
    """One thread, float32, channels-last: what a run has by default."""
    return make_runtime(device=device, channels_last=True, threads=1)


def view_of(size: int) -> AugmentSpec:
    """Zero-padded crop, flip, normalisation."""
    info = ModelInfo(name="bench", num_classes=10, image_size=size, mean=MEAN, std=STD)
    return AugmentSpec(info=info, pad=PAD, flip=True)


def smooth_images(count: int, size: int, seed: int = 0) -> Tensor:
    """(count, size, size, 3) uint8 that compress about as photographs do: blurred noise, and a little of it sharp."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 4, size // 4, generator=draw)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic")
    smooth = (smooth + 0.03 * torch.randn(smooth.shape, generator=draw)).clamp(0, 1)
    return (smooth * 255).byte().permute(0, 2, 3, 1).contiguous()


def filled_pool(runtime: Runtime, size: int, count: int, folder: Path | None = None, **options: Any) -> Pool:
    """A pool of `count` images of `size` pixels, the same few over and over, and a journal if there is a folder."""
    journal = Journal(folder, capacity=count) if folder is not None else None
    pool = Pool(count, (3, size, size), runtime=runtime, num_classes=10, journal=journal, **options)
    few = smooth_images(min(count, 2048), size).to(runtime.device)
    labels = (torch.arange(len(few)) % 10).to(runtime.device)
    while pool.written < count:
        rest = min(len(few), count - pool.written)
        pool.add_bytes(few[:rest], labels[:rest])
    pool.flush()
    return pool
