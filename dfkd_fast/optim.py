"""Optimisers as data: a method says what it optimises and how, the loop builds, steps and resets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """Which optimiser, over which parameter groups (each with its own "lr"), with which remaining arguments."""

    kind: Literal["adam", "adamw", "sgd"]
    groups: Sequence[dict[str, Any]]
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    weight_decay: float = 0.0

    def build(self) -> Optimizer:
        """The torch optimiser, fused: one pass over each parameter, no host synchronisation."""
        groups = [{**group, "base_lr": group["lr"]} for group in self.groups]
        if self.kind == "sgd":
            return SGD(groups, momentum=self.momentum, weight_decay=self.weight_decay, fused=True)
        cls = Adam if self.kind == "adam" else AdamW
        return cls(groups, betas=self.betas, weight_decay=self.weight_decay, fused=True)


@torch.no_grad()
def reset_state(optimizer: Optimizer) -> None:
    """Forget moments and step counts in place: the same as a new optimiser, but no tensor moves (compile and graphs
    survive).
    """
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set every group's learning rate; in place where it is a tensor (captured steps hold its address)."""
    for group in optimizer.param_groups:
        _set_group_lr(group, lr)


def scale_lr(optimizer: Optimizer, factor: float) -> None:
    """Set each group's learning rate to `factor` times the one that its spec gave."""
    for group in optimizer.param_groups:
        _set_group_lr(group, factor * group["base_lr"])


def _set_group_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr
