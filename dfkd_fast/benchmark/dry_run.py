"""`dfkd-fast train ... --dry-run`: what a run would cost on this machine, before anything is spent or written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from dfkd_fast.benchmark.answers import hours_of, offer, window_on
from dfkd_fast.benchmark.idle import busy_line, load_average
from dfkd_fast.benchmark.projection import Projection, project
from dfkd_fast.benchmark.step_profiler import profile_steps
from dfkd_fast.benchmark.step_timer import TimingWindow
from dfkd_fast.config.sources import resolve
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.flops import count_step_flops
from dfkd_fast.costs.peak import matmul_rate
from dfkd_fast.costs.work import recipe_work
from dfkd_fast.device.allocator import KEEPING, unused_jemalloc
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.models.factory import ModelInfo, load_model
from dfkd_fast.pool.build import check_pool
from dfkd_fast.training.assemble import load_method, runtime_of, stated_values
from dfkd_fast.training.evaluate import evaluation_images
from dfkd_fast.training.judge import check_teacher
from dfkd_fast.training.logit_cache import resolved_count


def dry_run(config: TrainConfig[Any], *, show: Callable[[str], None] = print) -> Projection:
    """Time a few steps of both phases on random weights, and show what the whole recipe comes to.

    The teacher is neither trained nor fetched: weights change no time. Raises UserError for what a run would refuse.
    """
    config = resolve(config)
    config.check()
    runtime = runtime_of(config)
    check_pool(config.pool, runtime)
    info = teacher_info(config, runtime)
    ranks = f"{runtime.world_size} x " if runtime.world_size > 1 else ""
    heading = (
        f"dry run: {config.method_name}, {config.teacher} -> {config.student}, {info.image_size} px, "
        f"{info.num_classes} classes, {ranks}{runtime.describe()}, {runtime.precision}"
    )
    if runtime.is_main:
        show(heading)
    load, window = load_average(), window_on(runtime)
    method, timings = profile_steps(config, info, runtime, window)
    counted = partial(count_step_flops, method, info, teacher=config.teacher, student=config.student)
    flops = counted(cached_answers=resolved_count(config.cache_teacher_logits))
    work, patience = recipe_work(method, flops.round_steps), config.method.patience
    projection = project(work, timings, flops, matmul_rate(runtime), runtime, patience=patience)
    offered = (*_offers(config, info, runtime, window, timings.student.median),)
    for line in (*projection.lines(hours_of(runtime)), *offered) if runtime.is_main else ():
        show(line)
    warning = busy_line(runtime, load=load, slowdown=projection.slowdown)
    if warning and runtime.is_main:
        show(warning)
    return projection


def _offers(
    config: TrainConfig[Any], info: ModelInfo, runtime: Runtime, window: TimingWindow, step: float
) -> Iterator[str]:
    """What would make the run faster and is not asked for. All ranks call it; `step`: seconds of a student step."""
    kept = offer(config, info, runtime, window, step) if config.cache_teacher_logits == 0 else ""
    if kept:
        yield kept
    library = unused_jemalloc() if runtime.device.type == "cpu" else ""
    if library:
        yield f"{library} is installed: LD_PRELOAD={library} MALLOC_CONF={KEEPING} may save some per cent of this time"


def teacher_info(config: TrainConfig[Any], runtime: Runtime) -> ModelInfo:
    """What the teacher would say of itself: from the flags, its checkpoint, its library or its data set; one that is
    trained first takes its values from the data.
    """
    values = stated_values(config)
    test = evaluation_images(config, runtime) if config.train_teacher else None
    if test is not None:
        images, even = test.images, (0.5,) * test.images.in_chans  # which numbers they are changes no time
        values |= {"num_classes": images.num_classes, "image_size": images.image_size}
        values |= {"mean": values["mean"] or even, "std": values["std"] or even}
    model, info = load_model(
        config.teacher, **values, data_set=config.teacher_data, weights=config.teacher_weights, flag="--teacher"
    )
    test = test or evaluation_images(config, runtime, info)
    check_teacher(model, info, load_method(config.method_name), config, None if test is None else test.images)
    return info
