"""The alternating loop: each epoch makes images, then teaches the student; a checkpoint stands at every boundary."""

from __future__ import annotations

from torch import Tensor

from dfkd_fast.methods.base import Method, SynthBatch
from dfkd_fast.training.checkpoint import PHASES
from dfkd_fast.training.loop import Loop
from dfkd_fast.training.student import StudentTrainer
from dfkd_fast.training.synthesis import OnStep, Synthesizer


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
        ready = epoch + 1 == self.method.config.warmup_epochs
        steps += sum(part.method.fill_batches() for part in self.synthesizers) if ready else 0
        with self._phase("synthesis", epoch, steps) as on_step:
            self.method.train()
            for synthesizer, count in zip(self.synthesizers, rounds, strict=True):
                for index in range(count):
                    self._round(synthesizer, epoch, index, on_step)
                if self.method.synchronized:
                    self.runtime.average_buffers(self.method)
                if ready:
                    self._fill(synthesizer, on_step)
        self._boundary(epoch, "synthesis")

    def _round(self, synthesizer: Synthesizer, epoch: int, index: int, on_step: OnStep) -> None:
        """One round of one source, into its pool."""
        self._store(synthesizer, synthesizer.round(epoch, index, on_step))
        self.progress.counts["generator_steps"] += synthesizer.method.config.synthesis_steps

    def _fill(self, synthesizer: Synthesizer, on_step: OnStep) -> None:
        """What a source adds to its pool before the student starts."""
        for batch in synthesizer.fill():
            self._store(synthesizer, batch)
            on_step({}, len(batch.images))

    def _store(self, synthesizer: Synthesizer, batch: SynthBatch) -> None:
        self.trainer.store(synthesizer.method.info.image_size, batch)
        self.progress.counts["images_synthesized"] += len(batch.images) * self.runtime.world_size

    def _distillation(self, epoch: int) -> None:
        steps = self.method.student_steps(epoch)
        with self._phase("distillation", epoch, steps) as on_step:
            self.trainer.epoch(epoch, on_step)
            self.progress.counts["student_steps"] += steps
        self._evaluation(epoch)
        self._boundary(epoch, "distillation")
