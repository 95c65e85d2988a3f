"""One run, assembled: what happens in it, and what is written along the way and at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from dfkd_fast.config.sources import label_text
from dfkd_fast.config.train import TrainConfig
from dfkd_fast.costs.flops import count_step_flops
from dfkd_fast.costs.work import recipe_work
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.messages.terminal import command
from dfkd_fast.methods.base import Method
from dfkd_fast.models.teacher import FrozenNet
from dfkd_fast.reporting.loggers import RunLogger
from dfkd_fast.reporting.visualize import save_grid
from dfkd_fast.training.alternating import AlternatingLoop
from dfkd_fast.training.checkpoints.checkpoint import PHASES, Checkpoint, save_network
from dfkd_fast.training.checkpoints.identity import Identity
from dfkd_fast.training.checkpoints.keeping import Keeper
from dfkd_fast.training.evaluate import agreement, deployed, deployed_name, evaluate
from dfkd_fast.training.failures import CollapseWatch
from dfkd_fast.training.int8_teacher import int8_figures
from dfkd_fast.training.interrupt import StopSignals
from dfkd_fast.training.judge import Verdict
from dfkd_fast.training.logit_cache import LogitCache
from dfkd_fast.training.loop import Loop
from dfkd_fast.training.pools import make_pools
from dfkd_fast.training.prior import Prior
from dfkd_fast.training.ranks import Resumed
from dfkd_fast.training.real_images.collected import Collected
from dfkd_fast.training.records.run_record import run_costs, write_run_record
from dfkd_fast.training.stepwise import StepwiseLoop
from dfkd_fast.training.student import make_trainer

LOOPS: dict[str, type[Loop]] = {"alternating": AlternatingLoop, "stepwise": StepwiseLoop}


class Run:
    """One run, assembled: networks, method, pool and loop, and what is written along the way."""

    def __init__(
        self,
        config: TrainConfig,
        runtime: Runtime,
        teacher: FrozenNet,
        student: nn.Module,
        method: Method,
        verdict: Verdict,
        signals: StopSignals,
        identity: Identity,
        collected: Collected | None = None,
        cache: LogitCache | None = None,
    ) -> None:
        self.config, self.runtime, self.teacher, self.collected = config, runtime, teacher, collected
        self.test, self.teacher_evaluation = verdict.test, verdict.evaluation
        self.method, self.folder, info = method, config.run_folder, teacher.info
        self.student_info = replace(info, name=deployed_name(method, config.student))
        self.keeper = Keeper(config, runtime, identity, self.student_info)
        # before anything is spent: a network that cannot be counted is no surprise at the end; who writes them counts
        names, answers = {"teacher": config.teacher, "student": config.student}, cache.view.count if cache else 0
        self.step_flops = count_step_flops(method, info, **names, cached_answers=answers) if runtime.is_main else None
        self.pool, pool_lines = make_pools(
            config.pool, self.folder / "pool", method=method, runtime=runtime, cache=cache
        )
        self.logger = RunLogger(
            self.folder,
            total_epochs=config.method.epochs,
            is_main=runtime.is_main,
            log_every=config.log.every,
            gpus=runtime.world_size if runtime.device.type == "cuda" else 0,
            device=runtime.device,
        )
        for line in self._opening_lines(verdict, pool_lines):
            self.logger.message(line)
        self.watch = CollapseWatch(teacher, runtime, config.method, self.logger.message)
        self.loop = LOOPS[method.loop](
            method=self.method,
            student=student,
            trainer=make_trainer(student, method=method, teacher=teacher, pool=self.pool, runtime=runtime, cache=cache),
            pool=self.pool,
            runtime=runtime,
            logger=self.logger,
            signals=signals,
            seed=config.seed,
            evaluate=self.evaluate_student,
            save=self.save,
            watch=self.watch,
            prior=Prior(config.pool, method, teacher, runtime),
        )

    def _opening_lines(self, verdict: Verdict, pool_lines: Sequence[str]) -> Iterator[str]:
        """What the user should know before the first step."""
        config = self.config
        yield from verdict.lines
        if self.collected is not None:
            real = f"{len(self.collected)} real images of {self.collected.name}"
            yield f"not strictly data-free: {config.method_name} also learns from {real}"
        if label_text(config) is False:
            made_up = f"class vectors are made up ({config.text}); published results are with --text clip"
            yield f"without label text: {made_up}"
        yield from pool_lines
        if self.runtime.compilation != "off" and self.runtime.device.type == "cpu":
            yield f"--compile {self.runtime.compilation}: on a CPU the first step of each kind takes minutes"

    def execute(self, resumed: Resumed | None) -> None:
        """Run from a checkpoint, or from the start, and write the results."""
        first = (0, PHASES[0])
        if resumed is None or resumed.checkpoint is None:
            self.logger.restart()
        else:
            first = self.keeper.take_up(resumed, self.loop, self.logger.message)
        self.loop.run(first=first, stop_after=self.config.stop_after_epoch)
        stopped = self.config.stop_after_epoch is not None and self.config.stop_after_epoch < self.config.method.epochs
        self.finish(complete=not stopped)

    def evaluate_student(self, epoch: int) -> dict[str, float]:
        """Top-1, top-5 and agreement with the teacher on the test images, after the epochs that --eval.every names."""
        every, last = self.config.eval.every, epoch + 1 == self.config.method.epochs
        due = last or (every > 0 and (epoch + 1) % every == 0)
        if self.test is None or self.teacher_evaluation is None or not due:
            return {}
        network = deployed(self.method, self.loop.student)
        batch_size = self.config.eval.batch_size
        found = evaluate(
            network, self.test, info=self.student_info, runtime=self.runtime, batch_size=batch_size, shared=True
        )
        self.watch.evaluated(epoch, found.predictions, self.test.num_classes)
        return {"top1": found.top1, "top5": found.top5, "agreement": agreement(found, self.teacher_evaluation)}

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and a grid of the newest images, at a phase boundary."""
        if not self.keeper.is_due(checkpoint):
            return
        number, last = checkpoint.epoch + 1, self.keeper.is_last(checkpoint)
        made = checkpoint.phase in self.loop.image_phases
        if made and (last or number & (number - 1) == 0):  # epochs 1, 2, 4, 8, ...; before it, or a crash loses them
            self.save_images(checkpoint.epoch, self.folder / "images" / f"epoch-{number:04d}")
        self.keeper.save(checkpoint, self.loop)

    def save_images(self, epoch: int, stem: Path) -> None:
        """Per-class grid of the images that the last round made; of each size, if there are several."""
        columns = self.config.log.images_per_class if self.runtime.is_main else 0
        plans = self.loop.plans
        for plan in plans if columns else ():
            images, labels = self.loop.newest_images(plan)
            self.watch.made(epoch, images, labels)
            path = stem.with_name(f"{stem.name}{'' if len(plans) == 1 else f'-{plan.image_size}'}.png")
            save_grid(path, images, labels, num_classes=self.method.info.num_classes, per_class=columns)

    def finish(self, *, complete: bool) -> None:
        """Write student.safetensors (a complete run only) and run.json, and say where; one rank does."""
        if self.step_flops is None:  # not the rank that writes
            return
        if complete:
            save_network(
                self.folder / "student.safetensors", deployed(self.method, self.loop.student), self.student_info
            )
        teacher_top1 = self.teacher_evaluation.top1 if self.teacher_evaluation else None
        work = recipe_work(self.method, self.step_flops.round_steps, self.config.stop_after_epoch)
        costs = run_costs(work, self.step_flops, self.loop.progress, self.runtime, patience=self.config.method.patience)
        int8 = int8_figures(self.teacher, self.test, self.runtime, batch_size=self.config.eval.batch_size)
        record = write_run_record(
            self.folder / "run.json",
            self.config,
            self.runtime,
            self.loop.progress,
            teacher_top1=teacher_top1,
            teacher=self.teacher.info,
            complete=complete,
            collected=0 if self.collected is None else len(self.collected),
            costs=costs | int8,
        )
        self.logger.close()
        if not complete:
            self.logger.message(f"stopped as asked; resume with: {command('train', '--resume', self.folder)}")
        elif record["top1_last"] is not None:
            self.logger.message(
                f"student top-1 {record['top1_last']:.4f}, teacher {teacher_top1:.4f} (last epoch, held-out images)"
            )
        self.logger.message(f"wrote {self.folder}/")

    def close(self) -> None:
        """Give up the pool, so that another process may take it."""
        self.pool.close()
