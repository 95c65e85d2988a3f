"""Initial weights of a round's generator: meta-learned over rounds, carried over, or fresh."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from dfkd_fast.generators.latent import LatentGenerator
from dfkd_fast.models.teacher import unregistered

Start = Literal["fomaml", "reptile", "carry", "fresh"]


class MetaInit(nn.Module):
    """The weights that each round of `generator` starts from.

    "fomaml", "reptile": a learned start, `weights`, that an Adam of its own moves once a round. Its gradient is the sum
    of the gradients of all steps of the round (first-order MAML), or `reptile_scale` times the way from the adapted
    weights back to the start. Fang et al., AAAI 2022 (arXiv:2112.06253), as in their release. "carry": where the round
    before ended. "fresh": `generator.reset_parameters()`.

    A round: `begin`, then `after_step` behind each step of the inner optimiser, then `finish`. `lr` is the outer Adam's
    learning rate, `own_lrs` those of parameters with one of their own, by name; `decay` weighs half the sum of squares
    of a learned start, which joins what it minimises (MSARC, Eq. 7). All work is in place and on the device;
    state_dict() holds a learned start and its Adam's moments.
    """

    steps: Tensor

    def __init__(
        self,
        generator: LatentGenerator,
        start: Start,
        *,
        lr: float,
        own_lrs: Mapping[str, float] | None = None,
        reptile_scale: float = 67.0,
        decay: float = 0.0,
        betas: tuple[float, float] = (0.5, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self._generator = unregistered(generator)
        self.start, self.reptile_scale, self.betas, self.eps = start, reptile_scale, betas, eps
        self.decay = decay
        self.meta_parameters: LatentGenerator | None = None
        if start in ("fomaml", "reptile"):
            self.meta_parameters = copy.deepcopy(generator).requires_grad_(False)
            self.mean, self.square = (_zeros_like(generator) for _ in range(2))
            self.register_buffer("steps", torch.zeros(()))
            self.lrs = [(own_lrs or {}).get(name, lr) for name, _ in generator.named_parameters()]

    @property
    def weights(self) -> LatentGenerator:
        """The module that the next round starts from: the learned start, or else the generator itself."""
        return self._generator[0] if self.meta_parameters is None else self.meta_parameters

    def reset_once(self, epoch: int, *, warmup_epochs: int, reset_epoch: int) -> None:
        """Draw the first layers of `weights` anew in one epoch of the run, before its first round's `begin`.

        It is `reset_epoch` epochs after warm-up, counted from 1 as Fast's release does; 0: never. Nothing is drawn with
        "fresh", whose rounds draw every layer themselves. Spatial latents have no such layers: 0 is all they take.
        """
        if reset_epoch and epoch + 1 == warmup_epochs + reset_epoch and self.start != "fresh":
            self.weights.reset_first_layers()

    @torch.no_grad()
    def begin(self) -> None:
        """Copy the start's weights into the generator, and zero the meta-gradient of the round before.

        Running statistics of BN stay as they are: a generator in train mode does not read them.
        """
        if self.start == "fresh":
            self._generator[0].reset_parameters()
        if self.meta_parameters is None:
            return
        torch._foreach_copy_(self._adapted(), self._weights())
        for weight in self._weights():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.zero_()

    @torch.no_grad()
    def after_step(self) -> None:
        """Add the gradients of the step just taken (FOMAML)."""
        if self.start != "fomaml":
            return
        gradients = [weight.grad for weight in self._adapted() if weight.grad is not None]
        # Where the loss scaler of fp16 has skipped the step they are not finite, and the start skips it, too.
        finite = torch.stack(torch._foreach_norm(gradients)).sum().isfinite()
        # the sum in one launch that a flag on the device turns off: SGD of rate 1 that climbs
        torch._fused_sgd_(
            self._gradients(),
            gradients,
            [],
            weight_decay=0.0,
            momentum=0.0,
            lr=1.0,
            dampening=0.0,
            nesterov=False,
            maximize=True,
            is_first_step=False,
            found_inf=finite.logical_not().float(),
        )

    @torch.no_grad()
    def finish(self) -> None:
        """One step of the outer Adam on a learned start."""
        if self.start == "reptile":
            way_back = torch._foreach_sub(self._weights(), self._adapted())
            torch._foreach_copy_(self._gradients(), torch._foreach_mul(way_back, self.reptile_scale))
        if self.meta_parameters is not None:
            self._adam_step()

    @torch.no_grad()
    def reset_optimizer(self) -> None:
        """Reset the outer Adam's state, as a new one would have it; the learned start stays."""
        if self.meta_parameters is not None:
            for tensor in (*self.mean, *self.square, self.steps):
                tensor.zero_()

    def _adam_step(self) -> None:
        if self.decay:
            torch._foreach_add_(self._gradients(), self._weights(), alpha=self.decay)
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

    def _adapted(self) -> list[Tensor]:
        return [*self._generator[0].parameters()]

    def _weights(self) -> list[Tensor]:
        return [*self.weights.parameters()]

    def _gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self._weights() if weight.grad is not None]


def _zeros_like(module: nn.Module) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.zeros_like(p), requires_grad=False) for p in module.parameters())
