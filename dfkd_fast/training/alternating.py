"""The alternating loop: each epoch makes images, then teaches the student; a checkpoint stands at every boundary."""

from __future__ import annotations

from torch import Tensor

from dfkd_fast.methods.base import PoolPlan, SynthBatch
from dfkd_fast.training.checkpoints.checkpoint import PHASES
from dfkd_fast.training.inner import OnStep, watched
from dfkd_fast.training.loop import Loop
from dfkd_fast.training.student import StudentTrainer


class AlternatingLoop(Loop):
    """Runs the epochs of a method that alternates between synthesis and distillation.

    Either phase may be empty: warm-up epochs only make images, and an epoch without rounds only teaches. All images
    first, then the student, is the schedule whose rounds are all in the warm-up.
    """

    trainer: StudentTrainer

    def run(self, *, first: tuple[int, str], stop_after: int | None) -> None:
        config = self.method.config
        self.begin_pool(first, self.trainer.store)
        for epoch in range(first[0], min(config.epochs, stop_after or config.epochs)):
            if (epoch, PHASES[1]) != first:
                self._synthesis(epoch)
            if epoch >= config.warmup_epochs:
                self._distillation(epoch)

    def newest_images(self, plan: PoolPlan) -> tuple[Tensor, Tensor]:
        return self.pool[plan.image_size].newest(plan.synthesis_batch_size)

    def _synthesis(self, epoch: int) -> None:
        steps = sum(plan.rounds(epoch) for plan in self.plans) * self.method.config.synthesis_steps
        if epoch + 1 == self.method.config.warmup_epochs:
            steps += sum(plan.fill_batches for plan in self.plans)
        if not steps:
            return
        with self._phase("synthesis", epoch, steps) as on_step, watched(self.engines, on_step):
            self.method.train()
            for batch in self.method.synthesize(epoch):
                self._take(batch, epoch, on_step)
        self._boundary(epoch, "synthesis")

    def _take(self, batch: SynthBatch, epoch: int, on_step: OnStep) -> None:
        """Put what a method hands over into its pool, once it is known to be sound."""
        taken = [engine.taken(epoch) for engine in self.engines]
        if not any(taken):  # nothing has been learned for it: what fills the pool
            on_step({}, len(batch.images))
        elif any(steps and engine.inner.shared for steps, engine in zip(taken, self.engines, strict=True)):
            self.runtime.average_buffers(self.method)
        self.trainer.store(batch)
        self.progress.counts["generator_steps"] += sum(taken)
        self.progress.counts["images_synthesized"] += len(batch.images) * self.runtime.world_size

    def _distillation(self, epoch: int) -> None:
        steps = self.method.config.steps_per_epoch
        with self._phase("distillation", epoch, steps) as on_step:
            self.trainer.epoch(epoch, steps, on_step)
            self.progress.counts["student_steps"] += steps
        self._evaluation(epoch)
        self._boundary(epoch, "distillation")
