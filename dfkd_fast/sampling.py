"""Which slots of the pool make the next student batch."""

from __future__ import annotations

import torch
from torch import Tensor


class EpochShuffle:
    """Uniform sampling without replacement, epoch after epoch.

    Batches are cut from one random permutation of 0..size-1 after another; a batch that reaches the end of one goes on
    in the next, so every batch is full (static shapes) and every image comes once before any comes again.
    """

    def __init__(self, size: int, batch_size: int, *, device: torch.device | str = "cpu") -> None:
        if size < 1:
            raise ValueError("sampling: the pool is empty; give the warm-up at least one synthesis round")
        self.size, self.batch_size, self.device = size, batch_size, device
        self._queue = torch.empty(0, dtype=torch.int64, device=device)

    def next(self) -> Tensor:
        """The next (batch_size,) int64 indices, from the device's default generator."""
        while len(self._queue) < self.batch_size:
            self._queue = torch.cat([self._queue, torch.randperm(self.size, device=self.device)])
        batch, self._queue = self._queue[: self.batch_size], self._queue[self.batch_size :]
        return batch
