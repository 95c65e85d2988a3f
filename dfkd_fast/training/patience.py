"""`--method.patience N`: a round ends when N of its steps have made no better image."""

from __future__ import annotations

import torch
from torch import Tensor

from dfkd_fast.device.runtime import Runtime

BLOCK = 10
"""steps, at most, from one question to the next: each waits for the device"""


class Patience:
    """Counts, on the device, the steps since the best one of a round.

    A step adds to the count, captured or not, and the host asks for it once in a block of steps. The blocks depend on N
    alone, so that any device, and a resumed run, ends a round where any other does.
    """

    def __init__(self, steps: int, runtime: Runtime) -> None:
        self.steps, self.runtime = steps, runtime
        self.block = min(steps, BLOCK)
        self._since_best = torch.zeros((), dtype=torch.int64, device=runtime.device)

    def begin(self) -> None:
        """Before the first step of a round."""
        self._since_best.zero_()

    def count(self, better: Tensor) -> None:
        """After each step: `better` () bool, whether it made the best image so far."""
        self._since_best.add_(1).mul_(~better)

    def is_over(self, taken: int) -> bool:
        """Whether a round ends with `taken` steps. At the end of a block this waits for the device.

        Several processes end a round together, when the last of them has lost its patience: a step may have messages.
        """
        if taken % self.block:
            return False
        waiting = self.runtime.all_reduce((self._since_best < self.steps).to(torch.int64))
        return not waiting.item()
