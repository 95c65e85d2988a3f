"""Meta-learning a generator: each round adapts it from a shared start, and what it learns moves the start.

Fang et al., Up to 100x Faster Data-Free Knowledge Distillation, AAAI 2022, arXiv:2112.06253.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

MetaRule = Literal["fomaml", "reptile", "none"]


class MetaLearner(nn.Module):
    """The weights that every round of `adapted` starts from, and the Adam that moves them from round to round.

    A round: `begin`, then `after_step` behind each step of the inner optimiser, then `finish`.
    "fomaml": the start's gradient is the sum of the gradients of all inner steps (first-order MAML, as released).
    "reptile": it is `reptile_scale` times the way from the adapted weights back to the start.
    "none": no start; each round goes on with the weights of the one before.
    `lrs` has one learning rate of the outer Adam for each parameter of `adapted`. All work is in place and on the
    device; state_dict() holds the start and Adam's moments.
    """

    steps: Tensor

    def __init__(
        self,
        adapted: nn.Module,
        *,
        rule: MetaRule,
        lrs: Sequence[float],
        reptile_scale: float = 67.0,
        betas: tuple[float, float] = (0.5, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self._adapted = (adapted,)  # in a tuple: its owner registers it
        self.rule, self.lrs, self.reptile_scale, self.betas, self.eps = rule, lrs, reptile_scale, betas, eps
        self.start = copy.deepcopy(adapted).requires_grad_(False)
        self.mean, self.square = (_zeros_like(self.start) for _ in range(2))
        self.register_buffer("steps", torch.zeros(()))

    @torch.no_grad()
    def begin(self) -> None:
        """Put the start's weights into the generator and forget the gradient of the round before.

        Running statistics of BN stay as they are: a generator in train mode does not read them.
        """
        if self.rule == "none":
            return
        torch._foreach_copy_(self._adapted_weights(), self._weights())
        for weight in self._weights():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.zero_()

    @torch.no_grad()
    def after_step(self) -> None:
        """Add the gradients of the step just taken (FOMAML)."""
        if self.rule != "fomaml":
            return
        gradients = [weight.grad for weight in self._adapted_weights() if weight.grad is not None]
        # Where the loss scaler of fp16 has skipped the step they are not finite, and the start skips it, too.
        finite = torch.stack(torch._foreach_norm(gradients)).sum().isfinite()
        taken = [torch.where(finite, gradient, 0) for gradient in gradients]
        torch._foreach_add_(self._gradients(), taken)

    @torch.no_grad()
    def finish(self) -> None:
        """One step of the outer Adam on the start."""
        if self.rule == "none":
            return
        if self.rule == "reptile":
            way_back = torch._foreach_sub(self._weights(), self._adapted_weights())
            torch._foreach_copy_(self._gradients(), torch._foreach_mul(way_back, self.reptile_scale))
        self._adam_step()

    @torch.no_grad()
    def forget(self) -> None:
        """Reset the outer Adam's state, as a new one would have it; the start stays."""
        for tensor in (*self.mean, *self.square, self.steps):
            tensor.zero_()

    def _adam_step(self) -> None:
        gradients, mean, square = self._gradients(), list(self.mean), list(self.square)
        beta1, beta2 = self.betas
        self.steps += 1
        torch._foreach_lerp_(mean, gradients, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, gradients, gradients, 1 - beta2)
        unbiased = torch._foreach_div(mean, self._bias_correction(beta1))
        roots = torch._foreach_sqrt(torch._foreach_div(square, self._bias_correction(beta2)))
        torch._foreach_add_(roots, self.eps)
        torch._foreach_addcdiv_(self._weights(), unbiased, roots, [-lr for lr in self.lrs])

    def _bias_correction(self, beta: float) -> Tensor:
        return -torch.expm1(self.steps * math.log(beta))  # 1 - beta^steps, also in float32

    def _adapted_weights(self) -> list[Tensor]:
        return [*self._adapted[0].parameters()]

    def _weights(self) -> list[Tensor]:
        return [*self.start.parameters()]

    def _gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self._weights() if weight.grad is not None]


def _zeros_like(module: nn.Module) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.zeros_like(p), requires_grad=False) for p in module.parameters())
