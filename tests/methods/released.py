"""Formulas of the released codes, in their own way: hooks, running averages, masks. Shared by several tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HookedStatistics:
    """The released codes' way: a forward hook on every BatchNorm's input, an EMA that starts with the first update."""

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        self.momentum = momentum
        self.pool: list[tuple[Tensor, Tensor]] | None = None
        self.inputs: list[Tensor] = []
        for layer in self.layers:
            layer.register_forward_hook(lambda _module, inputs, _output: self.inputs.append(inputs[0]))

    def statistics(self) -> list[tuple[Tensor, Tensor]]:
        return [(x.mean([0, 2, 3]), x.permute(1, 0, 2, 3).flatten(1).var(1, unbiased=False)) for x in self.inputs]

    def loss(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for index, (layer, (mean, var)) in enumerate(zip(self.layers, self.statistics(), strict=True)):
            if self.pool is not None:
                mean = (1 - self.momentum) * mean + self.momentum * self.pool[index][0]
                var = (1 - self.momentum) * var + self.momentum * self.pool[index][1]
            total = total + torch.norm(layer.running_var - var) + torch.norm(layer.running_mean - mean)
        return total

    def update(self) -> None:
        new = [(mean.detach(), var.detach()) for mean, var in self.statistics()]
        if self.pool is None:
            self.pool = new
            return
        m = self.momentum
        self.pool = [
            (m * old[0] + (1 - m) * now[0], m * old[1] + (1 - m) * now[1])
            for old, now in zip(self.pool, new, strict=True)
        ]


def masked_adversary(student: Tensor, teacher: Tensor) -> Tensor:
    p, log_p, log_q = F.softmax(teacher, 1), F.log_softmax(teacher, 1), F.log_softmax(student, 1)
    agree = (student.max(1)[1] == teacher.max(1)[1]).double()
    return -((p * (log_p - log_q)).sum(1) * agree).mean()
