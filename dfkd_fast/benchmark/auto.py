"""Resolve `auto` before a run: settings left to the machine that only a measurement can choose become numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dfkd_fast.benchmark.answers import decide
from dfkd_fast.benchmark.dry_run import teacher_info
from dfkd_fast.config.sources import resolve
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.messages.notes import note
from dfkd_fast.pool.build import check_pool
from dfkd_fast.training.assemble import runtime_of
from dfkd_fast.training.logit_cache import FLAG


def resolved(config: TrainConfig[Any]) -> TrainConfig[Any]:
    """The config with a number in place of `--cache-teacher-logits auto`, which one line says; any other as it is.

    Measured on random weights. All ranks of a run call it and get the same number; a run folder keeps it, so that a
    resumed run asks no more. Raises UserError for what a run would refuse.
    """
    if config.cache_teacher_logits != "auto":
        return config
    config = resolve(config)
    config.check()
    runtime = runtime_of(config)
    check_pool(config.pool, runtime)
    count, why = decide(config, teacher_info(config, runtime), runtime)
    note(f"{FLAG} auto: {count} ({why})")
    return replace(config, cache_teacher_logits=count)
