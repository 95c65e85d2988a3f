"""Which memory a pool goes to: by its size and by what is free."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from dfkd_fast.errors import UserError
from dfkd_fast.files.limits import free_host_memory

Tier = Literal["device", "pinned", "mmap"]

DEVICE_SHARE, HOST_SHARE = 0.5, 0.6
"""of the free memory, what a pool takes without being asked to: networks and activations need the rest"""
CACHE_SHARE = 0.8
"""of the free host memory, what the files of a mapped pool may fill and still be taken to stay there"""


class Room(NamedTuple):
    """Free memory in bytes."""

    device: int
    """on the GPU; on a CPU the same as `host`"""
    host: int


def choose_tier(
    requested: Literal["auto"] | Tier, nbytes: int, *, device: torch.device, room: Room, on_disk: bool, host_only: bool
) -> tuple[Tier, str]:
    """The tier for a pool of `nbytes`, and in words what was chosen and why.

    `on_disk`: the pool has a journal, so that mmap is possible; `host_only`: the stream reads host memory only.
    Raises UserError for a request that this machine cannot meet.
    """
    cuda = device.type == "cuda"
    if requested == "pinned" and not cuda:
        raise UserError(f"--pool.storage pinned: serves a CUDA device, the run is on {device}; choose device or mmap")
    if requested == "device" and cuda and host_only:
        raise UserError("--pool.storage device: --pool.stream dali reads host memory; choose pinned or mmap")
    if requested == "mmap" and not on_disk:
        raise UserError("--pool.storage mmap: needs a pool folder; choose device")
    if requested != "auto":
        return requested, f"{_size(nbytes)}, as asked"
    needed = _size(nbytes)
    if not (cuda and host_only) and nbytes <= DEVICE_SHARE * room.device:
        return "device", f"{needed} of {_size(room.device)} free on {device}"
    if cuda and nbytes <= HOST_SHARE * room.host:
        return "pinned", f"{needed} of {_size(room.host)} free in host memory, {_size(room.device)} on {device}"
    if not on_disk:
        raise UserError(f"--pool.capacity: {needed} do not fit into memory; lower it, or give the pool a folder")
    return "mmap", f"{needed}; only {_size(room.device)} free on {device}, {_size(room.host)} in host memory"


def stays_cached(nbytes: int) -> bool:
    """Whether files of so many bytes, once read, may be expected to stay in the page cache."""
    return nbytes <= CACHE_SHARE * free_host_memory()


def free_memory(device: torch.device) -> Room:
    """What is free now on the device and in host memory."""
    host = free_host_memory()
    return Room(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host, host)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"
