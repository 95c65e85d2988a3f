"""Randomness as a function of (seed, epoch, phase), so that a resumed run repeats a run bit for bit.

That is, where operators do: `device/switches.py` has what a GPU needs for it.
"""

from __future__ import annotations

import random
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

SHARED = random.Random()
"""Python's numbers that all ranks draw alike: for what decides the course of a step, whose collectives must meet"""


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive a 56-bit seed from `seed` and a path of names; equal arguments give equal seeds on every platform."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(sha256(text.encode()).digest()[:7], "big")


def seed_phase(seed: int, rank: int, epoch: int, phase: str) -> None:
    """Reseed Python, numpy and torch (all devices) for one phase. Rank 0 everywhere gives the rank-free stream.

    `SHARED` is the same on all ranks.
    """
    value = derive_seed(seed, rank, epoch, phase)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
    SHARED.seed(derive_seed(seed, 0, epoch, phase))


def balanced_labels(batch_size: int, num_classes: int, *, device: torch.device | str = "cpu") -> Tensor:
    """0..K-1 repeated floor(B / K) times, then B mod K classes drawn uniformly. Returns (B,) int64."""
    repeated = torch.arange(num_classes, device=device).repeat(batch_size // num_classes)
    rest = torch.randint(num_classes, (batch_size % num_classes,), device=device)
    return torch.cat([repeated, rest])


def epoch_labels(batch_size: int, class_order: Tensor, index: int) -> Tensor:
    """Labels (B,) int64 of batch `index` (0-based) of an epoch: every class equally often.

    A batch with room for all classes has each of them (`balanced_labels`). A smaller one takes the next slice of one
    permutation for the epoch, kept in `class_order` (K,), which is drawn anew, in place, for the first batch.
    """
    if batch_size >= len(class_order):
        return balanced_labels(batch_size, len(class_order), device=class_order.device)
    if index == 0:
        class_order.copy_(torch.randperm(len(class_order), device=class_order.device))
    return class_order.roll(-index * batch_size)[:batch_size]


def labels_in_turn(batch_size: int, class_order: Tensor, number: int) -> Tensor:
    """Labels (B,) int64 of batch `number` (0-based) of a series: every class equally often.

    A batch with room for all classes has each of them (`balanced_labels`). A smaller one takes the next slice of a
    permutation of the classes, kept in `class_order` (K,), which is drawn anew, in place, at the start of each pass.
    """
    if batch_size >= len(class_order):
        return balanced_labels(batch_size, len(class_order), device=class_order.device)
    index = number % -(-len(class_order) // batch_size)
    if index == 0:
        class_order.copy_(torch.randperm(len(class_order), device=class_order.device))
    return class_order.roll(-index * batch_size)[:batch_size]
