"""Compile-only cases of `bn_stat_loss`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dfkd_kernels.bn_stat_loss.reference import KINDS
from dfkd_kernels.bn_stat_loss.triton import BLOCK, bn_stat_loss_kernel

from . import AotCase


def cases() -> Iterator[AotCase]:
    """Both kinds, bare and with every option; the pointers are float32 whatever the network's dtype."""
    float32 = torch.float32
    args = (float32, float32, torch.int32, float32, float32, float32, float32, 26560)
    for kind, code in KINDS.items():
        for options in (False, True):
            flags = dict.fromkeys(("UNBIASED", "HAS_EMA", "HAS_WEIGHTS"), options)
            name = f"bn_stat_loss_{kind}_{'all' if options else 'plain'}"
            yield AotCase(name, bn_stat_loss_kernel, args, {"KIND": code, **flags, "BLOCK": BLOCK, "num_warps": 4})


def corners() -> Iterator[AotCase]:
    """A network with one channel in all, each option alone."""
    float32 = torch.float32
    args = (float32, float32, torch.int32, float32, float32, float32, float32, 1)
    names = ("UNBIASED", "HAS_EMA", "HAS_WEIGHTS")
    for chosen in names:
        options = {"KIND": KINDS["l2"], **{name: name == chosen for name in names}, "BLOCK": BLOCK, "num_warps": 4}
        yield AotCase(f"bn_stat_loss_one_channel_{chosen.lower()}", bn_stat_loss_kernel, args, options)
