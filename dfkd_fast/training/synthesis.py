"""One synthesis round: everything that repeats around a method's synthesis step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from dfkd_fast.device.compilation import compiled
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import LossTerms, Method, SynthBatch, weighted_sum
from dfkd_fast.optim import OptimizerSpec, reset_state, scale_lr
from dfkd_fast.training.failures import diverged
from dfkd_fast.training.steps import make_runner

OnStep = Callable[[LossTerms, int], None]
"""called after each step with its loss terms and the number of images it saw; raises to stop the run"""


_Made = tuple[Tensor, Tensor, LossTerms]
"""images, loss and terms, without gradients"""


class Synthesizer:
    """Runs rounds of a method: optimisers with in-place reset, learning rates, mixed precision, best iterate.

    The step touches the device only: no loss is read back, the best images are kept by `torch.where`.
    """

    def __init__(self, method: Method, runtime: Runtime) -> None:
        self.method, self.runtime = method, runtime
        self.optimizer = self._build(method.synthesis_optimizer())
        """the round's own, whose state is reset"""
        self.lasting_optimizer = self._build(method.lasting_optimizer())
        """the one whose state lasts; a method has one of them, or both"""
        self.optimizers = [part for part in (self.optimizer, self.lasting_optimizer) if part is not None]
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self.best_loss = torch.full((), torch.inf, device=runtime.device, dtype=runtime.master_dtype)
        self.best_images: Tensor | None = None
        self.run_step = make_runner(self.step, runtime)
        self._forward = compiled(method.synthesis_step, runtime.compilation)

    def round(self, epoch: int, index: int, on_step: OnStep) -> SynthBatch:
        """One round, and what it leaves to the pool: by default what the step of the lowest loss (in the last stage)
        made.
        """
        self.steps(epoch, index, on_step)
        if self.best_images is None or not self.best_loss.isfinite():
            raise diverged("synthesis", epoch, self.method.config)
        return self.finish()

    def steps(self, epoch: int, index: int, on_step: OnStep) -> None:
        """The steps of a round alone, `synthesis_steps` of them: nothing waits for the device."""
        self.method.begin_round(epoch, index)
        if self.lasting_optimizer is not None:
            scale_lr(self.lasting_optimizer, self.method.lasting_lr_scale(epoch, index))
        for stage, steps in enumerate(self.method.stages()):
            if self.optimizer is not None:
                reset_state(self.optimizer)
            self.best_loss.fill_(torch.inf)
            self.method.begin_stage(stage)
            for step in range(steps):
                self.method.begin_step(step)
                if self.optimizer is not None:
                    scale_lr(self.optimizer, self.method.lr_scale(step, steps))
                on_step(self.run_step(self.method.step_variant()), self.method.config.synthesis_batch_size)

    def finish(self) -> SynthBatch:
        """What a round whose steps are done leaves."""
        assert self.best_images is not None, "no step has been made"
        with torch.no_grad(), self.runtime.autocast():
            return self.method.end_round(self.best_images)

    def step(self) -> LossTerms:
        """One step: images, loss, backward, best iterate, optimiser. Returns the detached terms."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        parts = [self._part(share) for share in self.method.global_batch.micro_batches()]
        images, loss, terms = parts[0] if len(parts) == 1 else _joined(parts)
        if self.runtime.global_batch:  # the batch's loss decides which images are kept, and its terms are shown
            self.runtime.average([*self._gradients(), loss, *terms.values()])
        elif self.method.synchronized:
            self.runtime.average(self._gradients())
        self._keep_best(loss, images)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.method.end_step()
        return terms

    def fill(self) -> Iterator[SynthBatch]:
        """What goes into the pool once the warm-up's rounds are over, batch by batch."""
        for index in range(self.method.fill_batches()):
            with torch.no_grad(), self.runtime.autocast():
                batch = self.method.fill(index)
            yield batch

    def _part(self, share: float) -> _Made:
        """Forward and backward of the batch, or of the next micro-batch, which has a share of the loss."""
        with self.runtime.autocast():
            images, terms = self._forward()
        loss = weighted_sum(terms, self.method.config)
        self.scaler.scale(loss if share == 1 else loss * share).backward()
        return images.detach(), loss.detach(), {name: term.detach() for name, term in terms.items()}

    def _gradients(self) -> list[Tensor]:
        learning = [
            value for optimizer in self.optimizers for group in optimizer.param_groups for value in group["params"]
        ]
        return [value.grad for value in learning if value.grad is not None]

    def _build(self, spec: OptimizerSpec | None) -> Optimizer | None:
        return None if spec is None else spec.build(self.runtime.optimizer, capturable=self.runtime.graphs)

    def _keep_best(self, loss: Tensor, images: Tensor) -> None:
        if self.best_images is None:
            self.best_images = torch.zeros_like(images)
        # False for NaN, which therefore never enters the pool
        better = loss < self.best_loss if self.method.config.keep == "best" else loss.isfinite()
        torch.where(better, images, self.best_images, out=self.best_images)
        torch.where(better, loss, self.best_loss, out=self.best_loss)
        with torch.no_grad():
            self.method.keep_best(better)


def _joined(parts: Sequence[_Made]) -> _Made:
    """All images, and the means of losses and terms."""
    images, losses, terms = zip(*parts, strict=True)
    means = {name: torch.stack([part[name] for part in terms]).mean() for name in terms[0]}
    return torch.cat(images), torch.stack(losses).mean(), means
