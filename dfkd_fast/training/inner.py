"""The engine of a method's inner optimisations in a run: everything that repeats around a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from dfkd_fast.device.compilation import compiled
from dfkd_fast.device.runtime import Runtime
from dfkd_fast.methods.base import LossTerms, Method, weighted_sum
from dfkd_fast.methods.inner import Inner, LrScale, Variant, inners, key_of
from dfkd_fast.optim import OptimizerSpec, reset_state, scale_lr
from dfkd_fast.parallel.global_batch import GlobalBatch
from dfkd_fast.training.capture import make_runner
from dfkd_fast.training.failures import diverged
from dfkd_fast.training.patience import Patience

OnStep = Callable[[LossTerms, int], None]
"""called after each step with its loss terms and the number of images it saw; raises to stop the run"""

_Made = tuple[Any, Tensor, LossTerms]
"""what a step made, loss and terms, without gradients"""


def ignore(terms: LossTerms, images: int) -> None:
    """An `OnStep` for steps that nobody watches."""


class InnerLoop:
    """Runs an inner optimisation: optimisers with in-place reset, learning rates, mixed precision, best iterate.

    The step touches the device only: no loss is read back, what the best step made is kept by `torch.where`.
    """

    def __init__(self, inner: Inner, runtime: Runtime, global_batch: GlobalBatch) -> None:
        self.inner, self.runtime, self.global_batch = inner, runtime, global_batch
        self.fresh, self.lasting = (self._build(spec) for spec in inner.optimizers())
        self.optimizers = [each for each in (self.fresh, self.lasting) if each is not None]
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self.best_loss = torch.full((), torch.inf, device=runtime.device, dtype=runtime.master_dtype)
        self.best: Any = None
        self.patience = Patience(inner.config.patience, runtime) if inner.config.patience else None
        self._sound = torch.zeros((), dtype=torch.bool, device=runtime.device)
        self.on_step: OnStep = ignore
        self.unchecked_steps = 0
        """steps since the last call of `taken` or `counted`"""
        self.run_step = make_runner(self.step, runtime)
        self._forward = compiled(inner.step, runtime.compilation)
        inner.engine = self

    def run(self, steps: int, lr_scale: LrScale, variant: Variant) -> Any:
        """See `Inner.run`: nothing here waits for the device, unless patience asks whether steps still pay."""
        if self.fresh is not None:
            reset_state(self.fresh)
        self.best_loss.fill_(torch.inf)
        if self.patience is not None:
            self.patience.begin()
        key = key_of(variant)
        if not callable(lr_scale):
            self._scale(lr_scale)
        for step in range(steps):
            if callable(lr_scale):
                self._scale(lr_scale(step))
            self.on_step(self.run_step(key, variant), self.inner.config.synthesis_batch_size)
            self.unchecked_steps += 1
            if self.is_over(step + 1):
                break
        finite = self.best_loss.isfinite()  # of networks that take turns, each run is one step: any of them will do
        self._sound.copy_(finite | self._sound if steps == 1 else finite)
        assert self.best is not None, "no step has been taken"
        return self.best

    def is_over(self, taken: int) -> bool:
        """Whether a run ends with so many steps."""
        return self.patience is not None and self.patience.is_over(taken)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """See `Inner.inference`."""
        with torch.no_grad(), self.runtime.autocast():
            yield

    def step(self, variant: Variant) -> LossTerms:
        """One step: forward, backward, best iterate, optimiser. Returns the detached terms."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        parts = [self._part(share, variant) for share in self.global_batch.micro_batches()]
        made, loss, terms = parts[0] if len(parts) == 1 else _concatenated(parts)
        if self.runtime.global_batch:  # the batch's loss decides which images are kept, and its terms are shown
            self.runtime.average([*self._gradients(), loss, *terms.values()])
        elif self.inner.shared:
            self.runtime.average(self._gradients())
        self._keep_best(loss, made)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.inner.after is not None:
            self.inner.after()
        return terms

    def taken(self, epoch: int) -> int:
        """Steps since the last call. Raises UserError if no step of the last run had a finite loss; waits for the
        device.
        """
        steps = self.counted()
        if steps and not self._sound:
            raise diverged("synthesis", epoch, self.inner.config)
        self._sound.zero_()
        return steps

    def counted(self) -> int:
        """The same, without asking."""
        steps, self.unchecked_steps = self.unchecked_steps, 0
        return steps

    def _part(self, share: float, variant: Variant) -> _Made:
        """Forward and backward of the batch, or of the next micro-batch, which has a share of the loss."""
        with self.runtime.autocast():
            made, terms = self._forward(**variant)
        loss = weighted_sum(terms, self.inner.config)
        self.scaler.scale(loss if share == 1 else loss * share).backward()
        return tree_map(torch.detach, made), loss.detach(), {name: term.detach() for name, term in terms.items()}

    def _gradients(self) -> list[Tensor]:
        learning = [
            value for optimizer in self.optimizers for group in optimizer.param_groups for value in group["params"]
        ]
        return [value.grad for value in learning if value.grad is not None]

    def _build(self, spec: OptimizerSpec | None) -> Optimizer | None:
        return None if spec is None else spec.build(self.runtime.optimizer, capturable=self.runtime.graphs)

    def _scale(self, factor: float) -> None:
        for optimizer in self.optimizers:
            scale_lr(optimizer, factor)

    @torch.no_grad()
    def _keep_best(self, loss: Tensor, made: Any) -> None:
        if self.best is None:
            self.best = tree_map(torch.zeros_like, made)
        # False for NaN, which therefore never enters the pool
        better = loss < self.best_loss if self.inner.config.select_iterate == "best" else loss.isfinite()
        for new, best in zip(tree_leaves(made), tree_leaves(self.best), strict=True):
            torch.where(better, new, best, out=best)
        torch.where(better, loss, self.best_loss, out=self.best_loss)
        if self.patience is not None:
            self.patience.count(better)


def _concatenated(parts: Sequence[_Made]) -> _Made:
    """All rows, and the means of losses and terms."""
    made, losses, terms = zip(*parts, strict=True)
    means = {name: torch.stack([part[name] for part in terms]).mean() for name in terms[0]}
    return tree_map(lambda *rows: torch.cat(rows), *made), torch.stack(losses).mean(), means


def bind(method: Method, runtime: Runtime) -> list[InnerLoop]:
    """What drives each inner optimisation of a method, in their order."""
    return [InnerLoop(inner, runtime, method.global_batch) for inner in inners(method)]


@contextmanager
def watched(engines: Sequence[InnerLoop], on_step: OnStep) -> Iterator[None]:
    """Call `on_step` after each of their steps while the block runs."""
    for engine in engines:
        engine.on_step = on_step
    try:
        yield
    finally:
        for engine in engines:
            engine.on_step = ignore
