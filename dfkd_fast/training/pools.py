"""The pools of a run: one for each size of image that the method makes."""

from __future__ import annotations

from pathlib import Path

from dfkd_fast.config.train import PoolConfig
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import Method
from dfkd_fast.pool.build import make_pool
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.training.logit_cache import LogitCache

_DEFAULTS = vars(PoolConfig())


def make_pools(
    config: PoolConfig, folder: Path, *, method: Method, runtime: Runtime, cache: LogitCache | None = None
) -> tuple[MultiPool, list[str]]:
    """Empty pools with their journals in `folder`, each in one of its own where there are several, and a line about
    each; no pool for a method that makes every student batch anew, which then is the line.

    `cache`: what keeps the teacher's answers beside the images.
    """
    if method.loop == "stepwise":
        idle = [f"--pool.{name.replace('_', '-')}" for name, value in vars(config).items() if value != _DEFAULTS[name]]
        without = f"; {', '.join(idle)}: without effect" if idle else ""
        return MultiPool({}), [f"no pool: each student batch is made anew{without}"]
    plans, pools, lines = method.pools(), {}, []
    answers = 0 if cache is None else cache.extra_bytes(runtime)
    for plan in plans:
        size = plan.image_size
        pools[size], line = make_pool(
            config,
            folder if len(plans) == 1 else folder / str(size),
            capacity=plan.capacity,
            image_shape=(method.info.in_chans, size, size),
            num_classes=method.info.num_classes,
            runtime=runtime,
            policy=plan.policy,
            extra_bytes=plan.extra_bytes + answers,
        )
        lines.append(line)
    return MultiPool(pools), lines
