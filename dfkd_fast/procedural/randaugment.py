"""RandAugment of random pictures, by torchvision.

Cubuk, Zoph, Shlens, Le. CVPR Workshops 2020. arXiv:1909.13719.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.models.torchvision_cpu import ensure_importable

GROUP = 8
"""pictures that have the same operations: torchvision draws them once for a batch"""


def rand_augment(pictures: Tensor, *, operations: int, magnitude: int, seed: int) -> Tensor:
    """Pictures (N, C, H, W) in [0, 1], of 1 or 3 channels, each through so many random operations of a magnitude from 0
    to 30; the same shape and range. Operations are drawn on the host, by the seed; the default generator stays as it
    is.
    """
    if not operations:
        return pictures
    ensure_importable()
    from torchvision.transforms import v2

    transform = v2.RandAugment(num_ops=operations, magnitude=magnitude, fill=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return torch.cat([transform(group) for group in pictures.split(GROUP)]).clamp_(0, 1)


def check_channels(channels: int, flag: str) -> None:
    """Raise UserError, naming `flag` with its value, for pictures that it cannot change."""
    if channels not in (1, 3):
        raise UserError(f"{flag}: RandAugment changes images of 1 or 3 channels, these have {channels}; choose 0")
