"""Fast's rounds as its released code runs them: the generator cloned, its gradients added up parameter by parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from released_style.baseline import Baseline
from released_style.networks import LatentGenerator, draw_small
from released_style.recipe import Recipe


class FastBaseline(Baseline):
    """The baseline with a learned start: each round adapts a clone of the generator and fresh latents (FOMAML)."""

    make_generator = LatentGenerator

    def __init__(self, recipe: Recipe, folder: Path, **options: Any) -> None:
        super().__init__(recipe, folder, **options)
        lr = recipe.generator_lr * recipe.synthesis_steps
        self.meta_optimizer = torch.optim.Adam(self.generator.parameters(), lr, betas=(0.5, 0.999))

    def reset_first_layers(self) -> None:
        """Once in a run: the stem and the BatchNorm behind it, whose weights are around 0 from then on."""
        draw_small(self.generator.stem)
        draw_small(self.generator.blocks[0])

    def begin_round(self, *, later: bool = False) -> None:
        self.student.eval()
        count, recipe = self.recipe.synthesis_batch_size, self.recipe
        self.latents = torch.randn(count, recipe.latent_dim).to(self.embeddings).requires_grad_()
        self.labels = torch.randint(0, recipe.num_classes, (count,)).to(self.device)
        self.clone = self.make_generator(recipe).to(self.device, self.embeddings.dtype, memory_format=self.layout)
        self.clone.load_state_dict(self.generator.state_dict())
        groups = [{"params": self.clone.parameters()}, {"params": [self.latents], "lr": recipe.latent_lr}]
        self.synthesis_optimizer = torch.optim.Adam(groups, lr=recipe.generator_lr, betas=(0.5, 0.999))
        self.taken = 0
        self.forget_best()

    def generate(self) -> Tensor:
        return self.clone(self.latents)

    def step_optimizers(self, loss: Tensor) -> None:
        """The clone's step, and with the last of a round the start's, on the sum of all its gradients."""
        self.synthesis_optimizer.zero_grad()
        loss.backward()
        if self.taken == 0:
            self.meta_optimizer.zero_grad()
        for start, adapted in zip(self.generator.parameters(), self.clone.parameters(), strict=True):
            if start.grad is None:
                start.grad = torch.zeros_like(start)
            start.grad.data.add_(adapted.grad.data)
        self.taken += 1
        if self.taken == self.recipe.synthesis_steps:
            self.meta_optimizer.step()
        self.synthesis_optimizer.step()
