"""Images of several resolutions as one logical pool: a store for each, one mini-batch of each in a student step."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.pool.pool import Pool, PoolBatch
from dfkd_fast.pool.stream import AugmentSpec
from dfkd_fast.sampling import Sampler


class MultiPool:
    """Pools by image size. Raises ValueError for one whose images have another size."""

    def __init__(self, pools: Mapping[ImageSize, Pool]) -> None:
        for size, pool in pools.items():
            if pool.pixel_shape[:2] != size:
                raise ValueError(f"pools: the one of size {size} holds images of {pool.pixel_shape}")
        self.pools = dict(pools)

    def __len__(self) -> int:
        return sum(map(len, self.pools.values()))

    def __getitem__(self, image_size: ImageSize) -> Pool:
        return self.pools[image_size]

    def batches(
        self, samplers: Mapping[ImageSize, Sampler], views: Mapping[ImageSize, AugmentSpec], steps: int
    ) -> Generator[dict[ImageSize, PoolBatch], None, None]:
        """`steps` times a batch of each resolution, of its sampler's batch size."""
        streams = {size: pool.batches(samplers[size], views[size], steps) for size, pool in self.pools.items()}
        try:
            for _ in range(steps):
                yield {size: next(stream) for size, stream in streams.items()}
        finally:
            for stream in streams.values():
                stream.close()

    def flush(self) -> dict[str, Any]:
        """Make everything safe; returns what a checkpoint records."""
        return {str(size): pool.flush() for size, pool in self.pools.items()}

    def restore(self, manifest: Mapping[str, Any]) -> str:
        """Fill empty pools as they were when `manifest` was taken; says what is not as it was, if anything."""
        notes = [pool.restore(manifest[str(size)]) for size, pool in self.pools.items()]
        return "; ".join(filter(None, notes))

    def release(self, manifest: Mapping[str, Any]) -> None:
        """No older pool than that of `manifest` will be restored any more."""
        for size, pool in self.pools.items():
            pool.release(manifest[str(size)])

    def close(self) -> None:
        """End threads and give up the journals."""
        for pool in self.pools.values():
            pool.close()
