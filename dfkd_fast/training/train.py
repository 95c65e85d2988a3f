"""A run from a config to a student: check, assemble, run."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path

from dfkd_fast.config.sources import resolve
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.messages.refusals import disk_error
from dfkd_fast.models.teacher import FrozenNet, lower_dtype
from dfkd_fast.pool.build import check_pool
from dfkd_fast.training.assemble import class_vectors, load_method, load_teacher, make_method, make_student, runtime_of
from dfkd_fast.training.checkpoints.identity import Likeness, content_identity
from dfkd_fast.training.checkpoints.sources import check_sources
from dfkd_fast.training.evaluate import evaluation_images
from dfkd_fast.training.interrupt import resumable, stop_signals
from dfkd_fast.training.judge import check_frozen, check_teacher, judge_teacher
from dfkd_fast.training.logit_cache import make_cache, resolved_count
from dfkd_fast.training.pools import check_pool_use
from dfkd_fast.training.ranks import Resumed, checkpoint_to_resume, share_of_rank
from dfkd_fast.training.real_images.collected import check_collected, load_collected, rank_part
from dfkd_fast.training.records.run_folder import (
    check_folder,
    claim_folder,
    follow_moves,
    locked_folder,
    sweep_folder,
    taken_back_on_failure,
)
from dfkd_fast.training.run import Run
from dfkd_fast.training.student_recipe import check_student


def train(config: TrainConfig, *, resume: bool = False, other_code: bool = False) -> Path:
    """Run what the config says and return the run folder, `config.run_folder`.

    Everything that can be checked is checked before the folder is touched. With `resume`, goes on from the last
    checkpoint there; with `other_code` even where another version of the code wrote it.
    Raises UserError for a user's mistake and Interrupted after Ctrl-C or SIGTERM.
    """
    config = resolve(config)
    config.check()
    resolved_count(config.cache_teacher_logits)
    folder = config.run_folder
    check_folder(folder, resume=resume)
    if resume:
        check_sources(folder, config, "--resume", "put the old code back, or start a new run")
    runtime = runtime_of(config)
    with locked_folder(folder, rank=runtime.rank, resume=resume, world_size=runtime.world_size):
        resumed = checkpoint_to_resume(folder, runtime) if resume else None
        _train(config, runtime, resumed, Likeness(config, runtime, resumed, other_code=other_code))
    return folder


def _train(config: TrainConfig, runtime: Runtime, resumed: Resumed | None, likeness: Likeness) -> None:
    """Check what is left to check, make the networks, and run; the run folder is this process's."""
    folder = config.run_folder
    check_pool(config.pool, runtime)
    share_of_rank(config.method, runtime.shares)
    lower_dtype(config.teacher_precision, runtime)  # what cannot be had is said before a teacher is trained
    method_class = load_method(config.method_name)
    check_collected(config, method_class)
    test = evaluation_images(config, runtime) if config.train_teacher else None
    if test is not None:  # what cannot be had is said before the training
        class_vectors(config, method_class, test.images.num_classes, test.images.class_names)
    with stop_signals() as signals:
        with runtime.main_first():  # a teacher is trained once, then found
            trained_on = None if test is None else test.images
            model, info = load_teacher(config, trained_on, runtime, on_step=signals.check)
        test = test or evaluation_images(config, runtime, info)
        check_teacher(model, info, method_class, config, None if test is None else test.images)
        collected = load_collected(config, method_class, info)
        vectors = class_vectors(config, method_class, info.num_classes, info.class_names)
        likeness.check(content_identity(config, model, info, vectors, collected))
        teacher = FrozenNet(model, info, runtime, precision=config.teacher_precision, folded=config.fold_teacher)
        check_frozen(teacher, runtime)
        student = make_student(config, info, runtime)
        real = rank_part(collected, info, runtime)
        method = make_method(config, method_class, teacher, student, runtime, real)
        check_pool_use(config, method, runtime.shares)
        check_student(method, teacher, runtime, is_cached=config.cache_teacher_logits != 0)
        cache = make_cache(config.cache_teacher_logits, seed=config.seed, method=method, teacher=teacher)
        verdict = judge_teacher(teacher, test, config, runtime)
        signals.check()
        runtime.barrier()  # every rank has found the folder free
        starts = resumed is None and runtime.is_main
        try:
            if runtime.is_main:
                sweep_folder(folder)
                if resumed is not None:
                    follow_moves(folder, config)
            with resumable(folder, signals):
                with taken_back_on_failure(folder) if starts else nullcontext():
                    if starts:
                        claim_folder(folder, config)
                    runtime.barrier()
                    run = Run(
                        config, runtime, teacher, student, method, verdict, signals, likeness.identity, collected, cache
                    )
                with closing(run):
                    run.execute(resumed)
        except OSError as error:
            raise disk_error(error, folder) from error
