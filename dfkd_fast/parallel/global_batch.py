"""The batches of all ranks as one (`--bn.scope global`): each computes its rows, and what is of the batch is of all.

A loss is the mean over ranks of what each computes, and so are gradients: the loops average those of every parameter.
A value that all ranks use in the same way (`moments`, `all_gather`) therefore passes each rank the gradient of its own
part times their number, without a message. At one rank everything here is the identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from dfkd_fast.parallel import group as process_group
from dfkd_kernels import Moments

T = TypeVar("T", Tensor, Tensor | None)


@dataclass(eq=False)
class GlobalBatch:
    """Which rows of a global batch are this rank's: the `rank`-th of `size` equal parts, in order."""

    rank: int = 0
    size: int = 1

    def __bool__(self) -> bool:
        """Whether there is anything to join."""
        return self.size > 1

    def local_rows(self, whole: T) -> T:
        """This rank's rows of a tensor (B, ...) that all ranks have."""
        return whole if whole is None or self.size == 1 else whole.chunk(self.size)[self.rank]

    def all_gather(self, part: Tensor) -> Tensor:
        """The rows of all ranks (B, ...), from each rank's (B / size, ...). Differentiable."""
        gathered: Tensor = _Gather.apply(part, self.rank, self.size) if self else part
        return gathered

    def whole(self, rows: Tensor) -> Tensor:
        """What `all_gather` gives for this rank's rows of a tensor (B, ...) that all ranks have."""
        return rows

    def micro_batches(self) -> Iterator[float]:
        """Once for each part that a step computes behind the other, with its share of the step's loss: here 1."""
        yield 1.0

    def moments(self, found: Sequence[Moments]) -> Sequence[Moments]:
        """Those of the global batch, about the same shifts, with one message for all layers. Differentiable."""
        if not (self and found):
            return found
        sizes = [len(layer.sum) for layer in found for _ in range(2)]
        packed: Tensor = _Sum.apply(torch.cat([part for layer in found for part in layer[:2]]), self.size)
        parts = packed.split(sizes)
        return [
            Moments(parts[2 * index], parts[2 * index + 1], layer.shift, layer.count * self.size)
            for index, layer in enumerate(found)
        ]


class MicroBatches(GlobalBatch):
    """One process's batch in `number` equal parts, computed one after another (`--synthesis-micro-batches`).

    Nothing is global_batch: statistics are each part's own. Between steps the batch is whole.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __bool__(self) -> bool:
        return False

    def whole(self, rows: Tensor) -> Tensor:
        return self.local_rows(rows)

    def micro_batches(self) -> Iterator[float]:
        self.size = self.number
        try:
            for rank in range(self.number):
                self.rank = rank
                yield 1 / self.number
        finally:
            self.rank, self.size = 0, 1


LOCAL_BATCH = GlobalBatch()
"""one rank, or one of several with batches of their own"""


class _Sum(torch.autograd.Function):
    """The sum over ranks, which all use in the same way."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, size: int) -> Tensor:
        ctx.size = size
        total = value.clone()
        process_group.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.size, None


class _Gather(torch.autograd.Function):
    """All ranks' rows, which all use in the same way. A sum with zeros: gloo and NCCL both capture and order it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.size = rank, size
        rows = part.new_zeros(size, *part.shape)
        rows[rank] = part
        process_group.all_reduce(rows)
        return rows.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].chunk(ctx.size)[ctx.rank] * ctx.size, None, None
