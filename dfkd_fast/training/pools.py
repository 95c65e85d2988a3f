"""The pools of a run, one for each size of image that the method makes, and whether they suit the recipe."""

from __future__ import annotations

from pathlib import Path

from dfkd_fast.config.train import PoolConfig, TrainConfig
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.errors import UserError
from dfkd_fast.methods.base import Method
from dfkd_fast.pool.build import make_pool
from dfkd_fast.pool.multi import MultiPool
from dfkd_fast.training.logit_cache import LogitCache
from dfkd_fast.training.prior import plans_with_prior

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
    plans, pools, lines = plans_with_prior(config, method, runtime.shares), {}, []
    answers = 0 if cache is None else cache.extra_bytes(runtime)
    for plan in plans:
        size = plan.image_size
        pools[size], line = make_pool(
            config,
            folder if len(plans) == 1 else folder / str(size),
            capacity=plan.capacity,
            image_shape=(method.info.in_chans, *size),
            num_classes=method.info.num_classes,
            runtime=runtime,
            policy=plan.policy,
            extra_bytes=plan.extra_bytes + answers,
        )
        lines.append(line)
    return MultiPool(pools), lines


def check_pool_use(config: TrainConfig, method: Method, world_size: int = 1) -> None:
    """Raise UserError where the student would start on an empty pool, or a pool cannot hold what the recipe makes.

    `method` has one rank's share of the recipe, and `--pool.capacity` counts the images of all of `world_size`.
    """
    warmup, plans = config.method.warmup_epochs, plans_with_prior(config.pool, method, world_size)
    for plan in plans if method.loop == "alternating" else ():
        if not ((plan.fill_images and warmup) or any(plan.rounds(epoch) for epoch in range(warmup + 1))):
            raise UserError(
                f"--method.warmup-epochs {warmup}: no synthesis round before the student's first step; "
                "give at least one"
            )
        policy = config.pool.policy or plan.policy
        if plan.fill_images:
            _check_filled_pool(config, policy, plan.capacity * world_size)
        least = {"append": plan.capacity, "ring": plan.synthesis_batch_size, "cap": 1}[policy] * world_size
        if config.pool.capacity is not None and config.pool.capacity < least:
            other = " (or --pool.policy ring)" if policy == "append" else ""
            raise UserError(
                f"--pool.capacity {config.pool.capacity}: choose {least} or more for --pool.policy {policy}{other}"
            )


def _check_filled_pool(config: TrainConfig, policy: str, capacity: int) -> None:
    """Such a pool is filled to its capacity over what was there before: it can be neither larger nor smaller."""
    why = f"{config.method_name} fills its pool once, at the end of the warm-up, to exactly its size"
    if policy != "ring":
        raise UserError(f"--pool.policy {policy}: {why}; choose ring")
    if config.pool.capacity not in (None, capacity):
        raise UserError(f"--pool.capacity {config.pool.capacity}: {why}; choose {capacity}, or leave it out")
