"""Loss terms and image counts of a phase, summed on the device and read by the host only now and then."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Meter:
    """Means of named scalar terms over the steps of a phase.

    `update` never waits for the device; `read` does, once, however many terms there are.
    """

    def __init__(self) -> None:
        self.images = 0
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}
        self._read_sums: dict[str, float] = {}
        self._read_steps: dict[str, int] = {}

    def update(self, terms: Mapping[str, Tensor], images: int) -> None:
        """Add one step: scalar terms by name (their buffers may be overwritten afterwards) and its images."""
        self.images += images
        for name, value in terms.items():
            value = value.detach().reshape(())
            if name in self._sums:
                self._sums[name] += value
            else:
                self._sums[name] = value.to(torch.float32, copy=True)
            self._steps[name] = self._steps.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Means over the steps since the last read. Waits for the device."""
        if not self._sums:
            return {}
        sums = dict(zip(self._sums, torch.stack(list(self._sums.values())).tolist(), strict=True))
        recent = {name: value / self._steps[name] for name, value in sums.items()}
        for name, value in sums.items():
            self._read_sums[name] = self._read_sums.get(name, 0.0) + value
            self._read_steps[name] = self._read_steps.get(name, 0) + self._steps[name]
        self._sums.clear()
        self._steps.clear()
        return recent

    def means(self) -> dict[str, float]:
        """Means over all steps so far, each term over the steps that had it. Waits for the device."""
        self.read()
        return {name: value / self._read_steps[name] for name, value in self._read_sums.items()}
