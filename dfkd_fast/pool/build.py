"""A pool from a run's config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dfkd_fast.config.train import PoolConfig
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.pool.disk.journal import Journal
from dfkd_fast.pool.disk.shards import shard_folder
from dfkd_fast.pool.pool import Policy, Pool
from dfkd_fast.pool.storage import Room, choose_storage, free_memory
from dfkd_fast.pool.stream_dali import import_dali

HOST_PREFETCH = 2
"""batches prepared ahead where they pass through host memory: one on its way while another is made ready"""


def check_pool(config: PoolConfig, runtime: Runtime) -> None:
    """Raise UserError for what this machine cannot do, whatever the size of the pool."""
    host_only = config.stream == "dali"
    if host_only:
        import_dali()
    if config.storage == "mmap" and runtime.global_batch:
        raise UserError("--pool.storage mmap: --bn.scope global keeps the pool in each process's memory; choose device")
    choose_storage(config.storage, 0, device=runtime.device, room=Room(0, 0), on_disk=True, host_only=host_only)


def make_pool(
    config: PoolConfig,
    folder: Path,
    *,
    capacity: int,
    image_shape: tuple[int, int, int],
    num_classes: int,
    runtime: Runtime,
    policy: Policy = "append",
    extra_bytes: int = 0,
) -> tuple[Pool, str]:
    """An empty pool with its journal in `folder`, and a line that says where it is kept and why.

    `capacity` is that of this rank's share of the recipe, and `policy` the method's, where the config does not say (its
    capacity is for all ranks together); `image_shape` is (C, H, W), `extra_bytes` what is kept beside each image. A
    pool that the folder holds is replaced unless it is restored.
    Raises UserError for what this machine cannot do.
    """
    if config.capacity is not None:
        capacity = -(-config.capacity // runtime.shares)
    channels, height, width = image_shape
    writes = runtime.is_main or not runtime.global_batch  # with a global batch all ranks hold the same pool, whole
    storage, why = choose_storage(
        config.storage,
        capacity * (channels * height * width + extra_bytes),
        device=runtime.device,
        room=_room(runtime, extra_bytes),
        on_disk=not runtime.global_batch,
        host_only=config.stream == "dali",
    )
    through_host = config.stream == "dali" or (storage == "mmap" and runtime.device.type == "cuda")
    shard = shard_folder(folder, runtime.share, runtime.shares)
    prefetch = config.prefetch if config.prefetch is not None else HOST_PREFETCH * through_host
    pool = Pool(
        capacity,
        image_shape,
        runtime=replace(runtime, rank=runtime.share, world_size=runtime.shares),
        num_classes=num_classes,
        journal=Journal(shard, capacity=capacity, replace=True) if writes else None,
        written_by_another=None if writes else shard,
        storage=storage,
        stream=config.stream,
        prefetch=prefetch,
        policy=config.policy or policy,
        quantize=config.quantize,
    )
    return pool, f"pool: {capacity:,} images of {height}x{width}, storage {storage} ({why})"


def _room(runtime: Runtime, extra_bytes: int) -> Room:
    """Free memory. Pinned memory holds images only: with large extras there is none of it, as files take both."""
    room = free_memory(runtime.device)
    return room._replace(host=0) if extra_bytes and runtime.device.type == "cuda" else room
