"""One synthesis round: everything that repeats around a method's synthesis step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from dfkd_fast.compilation import compiled
from dfkd_fast.loops.failures import diverged
from dfkd_fast.loops.steps import make_runner
from dfkd_fast.methods.base import LossTerms, Method, SynthBatch, weighted_sum
from dfkd_fast.optim import reset_state, scale_lr
from dfkd_fast.runtime import Runtime

OnStep = Callable[[LossTerms, int], None]
"""called after each step with its loss terms and the number of images it saw; raises to stop the run"""


class Synthesizer:
    """Runs rounds of a method: optimisers with in-place reset, learning rates, mixed precision, best iterate.

    The step touches the device only: no loss is read back, the best images are kept by `torch.where`.
    """

    def __init__(self, method: Method, runtime: Runtime) -> None:
        self.method, self.runtime = method, runtime
        specs = [spec for spec in (method.synthesis_optimizer(), method.lasting_optimizer()) if spec is not None]
        self.optimizers = [spec.build(runtime.optimizer, capturable=runtime.graphs) for spec in specs]
        """the round's own, and the one whose state lasts, if the method has one"""
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self.best_loss = torch.full((), torch.inf, device=runtime.device, dtype=runtime.master_dtype)
        self.best_images: Tensor | None = None
        self.run_step = make_runner(self.step, runtime)
        self._forward = compiled(method.synthesis_step, runtime.compilation)

    @property
    def optimizer(self) -> Optimizer:
        """The round's own."""
        return self.optimizers[0]

    def round(self, epoch: int, index: int, on_step: OnStep) -> SynthBatch:
        """One round: `synthesis_steps` steps; what the step of the lowest loss (in the last stage) made goes to the
        pool.
        """
        self.method.begin_round(epoch, index)
        for stage, steps in enumerate(self.method.stages()):
            reset_state(self.optimizer)
            self.best_loss.fill_(torch.inf)
            self.method.begin_stage(stage)
            for step in range(steps):
                scale_lr(self.optimizer, self.method.lr_scale(step, steps))
                on_step(self.run_step(self.method.step_variant()), self.method.config.synthesis_batch_size)
        if self.best_images is None or not self.best_loss.isfinite():
            raise diverged("synthesis", epoch, self.method.config)
        with torch.no_grad(), self.runtime.autocast():
            return self.method.end_round(self.best_images)

    def step(self) -> LossTerms:
        """One step: images, loss, backward, best iterate, optimiser. Returns the detached terms."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with self.runtime.autocast():
            images, terms = self._forward()
        loss = weighted_sum(terms, self.method.config)
        self.scaler.scale(loss).backward()
        self._keep_best(loss.detach(), images.detach())
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.method.end_step()
        return {name: term.detach() for name, term in terms.items()}

    def _keep_best(self, loss: Tensor, images: Tensor) -> None:
        if self.best_images is None:
            self.best_images = torch.zeros_like(images)
        # False for NaN, which therefore never enters the pool
        better = loss < self.best_loss if self.method.config.keep == "best" else loss.isfinite()
        torch.where(better, images, self.best_images, out=self.best_images)
        torch.where(better, loss, self.best_loss, out=self.best_loss)
        with torch.no_grad():
            self.method.keep_best(better)
