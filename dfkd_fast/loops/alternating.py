"""The alternating loop: each epoch makes images, then teaches the student; a checkpoint stands at every boundary."""

from __future__ import annotations

from torch import Tensor

from dfkd_fast.checkpoint import PHASES
from dfkd_fast.loops.loop import Loop
from dfkd_fast.loops.student import StudentTrainer
from dfkd_fast.loops.synthesis import OnStep, Synthesizer
from dfkd_fast.methods.base import Method


class AlternatingLoop(Loop):
    """Runs the epochs of a method that alternates between synthesis and distillation.

    Either phase may be empty: warm-up epochs only make images, and an epoch without rounds only teaches. All images
    first, then the student, is the schedule whose rounds are all in the warm-up.
    """

    trainer: StudentTrainer

    def run(self, *, first: tuple[int, str], stop_after: int | None) -> None:
        config = self.method.config
        for epoch in range(first[0], min(config.epochs, stop_after or config.epochs)):
            if (epoch, PHASES[1]) != first:
                self._synthesis(epoch)
            if epoch >= config.warmup_epochs:
                self._distillation(epoch)

    def newest_images(self, source: Method) -> tuple[Tensor, Tensor]:
        return self.pool[source.info.image_size].newest(source.config.synthesis_batch_size)

    def _synthesis(self, epoch: int) -> None:
        rounds = [synthesizer.method.rounds(epoch) for synthesizer in self.synthesizers]
        if not any(rounds):
            return
        steps = sum(n * part.method.config.synthesis_steps for n, part in zip(rounds, self.synthesizers, strict=True))
        with self._phase("synthesis", epoch, steps) as on_step:
            self.method.train()
            for synthesizer, count in zip(self.synthesizers, rounds, strict=True):
                for index in range(count):
                    self._round(synthesizer, epoch, index, on_step)
        self._boundary(epoch, "synthesis")

    def _round(self, synthesizer: Synthesizer, epoch: int, index: int, on_step: OnStep) -> None:
        """One round of one source, into its pool."""
        size = synthesizer.method.info.image_size
        batch = synthesizer.round(epoch, index, on_step)
        self.trainer.store(size, batch)
        self.progress.counts["images_synthesized"] += len(batch.images) * self.runtime.world_size
        self.progress.counts["generator_steps"] += synthesizer.method.config.synthesis_steps

    def _distillation(self, epoch: int) -> None:
        steps = self.method.student_steps(epoch)
        with self._phase("distillation", epoch, steps) as on_step:
            self.trainer.epoch(epoch, on_step)
            self.progress.counts["student_steps"] += steps
        self._evaluation(epoch)
        self._boundary(epoch, "distillation")
