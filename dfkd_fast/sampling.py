"""Samplers: choose the pool slots of the next student batch.

Every sampler is a function of (seed, how much was drawn): its state is those two numbers, whatever the pool's size.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dfkd_fast.errors import UserError
from dfkd_fast.rng import derive_seed
from dfkd_kernels import PrioritySampler


class Draw(NamedTuple):
    """What one batch is made of."""

    slots: Tensor
    """(batch_size,) int64"""
    is_weights: Tensor | None = None
    """(batch_size,) importance weights, where the slots are not equally likely on purpose"""


class Sampler(Protocol):
    """Draws batches of slots. `state_dict` and `load_state_dict` resume it exactly."""

    batch_size: int

    def draw(self) -> Draw:
        """The next batch."""

    def state_dict(self) -> dict[str, int]:
        """What to save, as JSON."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""


class _Seeded:
    """A sampler's randomness: one generator, reseeded for each draw from (seed, number of the draw)."""

    def __init__(self, batch_size: int, device: torch.device | str, seed: int | None) -> None:
        self.batch_size = batch_size
        self.seed = torch.initial_seed() if seed is None else seed
        self.drawn = 0
        """images drawn so far"""
        self._generator = torch.Generator(device)

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed, self.drawn = state["seed"], state["drawn"]

    def _reseed(self, number: int) -> torch.Generator:
        return self._generator.manual_seed(derive_seed(self.seed, type(self).__name__, number))

    def _next(self) -> torch.Generator:
        """The generator of this draw, which is counted."""
        generator = self._reseed(self.drawn // self.batch_size)
        self.drawn += self.batch_size
        return generator


class EpochShuffle(_Seeded):
    """Uniform sampling without replacement, epoch after epoch, over the slots 0..size-1.

    Batches are cut from one random permutation after another; a batch that reaches the end of one goes on in the next,
    so every batch is full (static shapes) and every image comes once before any comes again; with `repeats` (size,)
    int64, on the host, as often as that says. `seed`: by default the one that the phase was seeded with.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        repeats: Tensor | None = None,
    ) -> None:
        _check_filled(size)
        super().__init__(batch_size, device, seed)
        self._slots = None if repeats is None else torch.repeat_interleave(repeats).to(device)
        self.size = size if self._slots is None else len(self._slots)
        self._made: tuple[int, int] | None = None
        self._permutation = torch.empty(0)

    def draw(self) -> Draw:
        parts, end = [], self.drawn + self.batch_size
        while self.drawn < end:
            number, start = divmod(self.drawn, self.size)
            part = self._epoch(number)[start : start + end - self.drawn]
            parts.append(part)
            self.drawn += len(part)
        places = torch.cat(parts) if len(parts) > 1 else parts[0]
        return Draw(places if self._slots is None else self._slots[places])

    def _epoch(self, number: int) -> Tensor:
        if self._made != (self.seed, number):
            generator = self._reseed(number)
            self._permutation = torch.randperm(self.size, device=generator.device, generator=generator)
            self._made = self.seed, number
        return self._permutation


class UniformSampler(_Seeded):
    """Uniform sampling with replacement over the first `size` slots; `size` is a scalar on the device and may grow."""

    def __init__(self, size: Tensor, batch_size: int, *, seed: int | None = None) -> None:
        super().__init__(batch_size, size.device, seed)
        self.size = size

    def draw(self) -> Draw:
        generator = self._next()
        uniforms = torch.rand(self.batch_size, dtype=torch.float64, device=self.size.device, generator=generator)
        return Draw((uniforms * self.size).long())


class BalancedSampler(_Seeded):
    """Every class equally often, whatever the pool holds of it; within a class uniformly with replacement.

    `labels` (N,) int64 of the slots 0..N-1; slots with a negative label are not drawn. A batch has each class that the
    pool holds floor(batch_size / classes) times, and the rest at random.
    """

    def __init__(self, labels: Tensor, batch_size: int, *, seed: int | None = None) -> None:
        _check_filled(int((labels >= 0).sum()))
        super().__init__(batch_size, labels.device, seed)
        self._slots = labels.argsort(stable=True)
        counts = labels[labels >= 0].bincount()
        ends = counts.cumsum(0) + (labels < 0).sum()
        self._starts, self._counts = (ends - counts)[counts > 0], counts[counts > 0]

    def draw(self) -> Draw:
        generator, classes = self._next(), len(self._counts)
        device = self._counts.device
        rest = torch.randint(classes, (self.batch_size % classes,), device=device, generator=generator)
        chosen = torch.cat([torch.arange(classes, device=device).repeat(self.batch_size // classes), rest])
        uniforms = torch.rand(self.batch_size, dtype=torch.float64, device=device, generator=generator)
        return Draw(self._slots[self._starts[chosen] + (uniforms * self._counts[chosen]).long()])


class ByPriority(_Seeded):
    """Slots with probability proportional to their priority, with replacement, and importance weights (N P)^-beta.

    `tree` holds the priorities. Feed the losses of a batch back with `tree.update(batch.indices, ...)`, and those of
    new images after `Pool.add`. Batches that the pool prepares ahead were drawn before the updates of the last
    `prefetch` steps: with prefetch 0 no priority is ever stale.
    """

    def __init__(self, tree: PrioritySampler, batch_size: int, *, seed: int | None = None) -> None:
        super().__init__(batch_size, tree.leaves.device, seed)
        self.tree = tree

    def draw(self) -> Draw:
        return Draw(*self.tree.sample(self.batch_size, self._next()))


def _check_filled(size: int) -> None:
    if size < 1:
        raise UserError("the pool is empty, there is nothing to sample; let the warm-up make at least one round")
