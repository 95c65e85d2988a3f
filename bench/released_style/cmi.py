"""CMI's synthesis step as its released code runs it: two views, each with all hooks, and a bank of features."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from released_style.baseline import Baseline, disagreement
from released_style.networks import Generator
from released_style.recipe import Recipe


class LatentGenerator(Generator):
    """The same blocks on latents instead of noisy layers."""

    def __init__(self, recipe: Recipe, latent_dim: int) -> None:
        super().__init__(recipe)
        self.noise = nn.Identity()
        self.stem = nn.Linear(latent_dim, 128 * self.start**2)


class MeansHook:
    """The spatial mean of what a BatchNorm reads, kept in every forward pass."""

    def __init__(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self.look)

    def look(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Called in every forward pass."""
        self.mean = inputs[0].mean((2, 3))


class CmiBaseline(Baseline):
    """The baseline with CMI's terms. `config`: the method's."""

    def __init__(self, recipe: Recipe, folder: Path, *, config: Any, **options: Any) -> None:
        super().__init__(recipe, folder, **options)
        self.config = config
        norms = [layer for layer in self.teacher.modules() if isinstance(layer, nn.BatchNorm2d)]
        self.means = [MeansHook(layer) for layer in norms]
        width = sum(layer.num_features for layer in norms)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.head_features))
        self.head_optimizer = torch.optim.Adam(self.head.to(self.device).parameters(), config.generator_lr)
        self.bank = torch.randn(config.bank_size, 2 * width, device=self.device)
        self.generator = LatentGenerator(recipe, config.latent_dim).to(self.device, memory_format=self.layout)

    def begin_round(self) -> None:
        self.student.eval()
        count = self.recipe.synthesis_batch_size
        self.latents = torch.randn(count, self.config.latent_dim, device=self.device).requires_grad_()
        self.labels = torch.randint(self.recipe.num_classes, (count,), device=self.device)
        learned = [*self.generator.parameters(), self.latents]
        self.synthesis_optimizer = torch.optim.Adam(learned, self.recipe.generator_lr, betas=(0.5, 0.999))
        self.best_loss, self.best_images = float("inf"), None

    def part(self, images: Tensor) -> Tensor:
        """A crop of at least a quarter of the area, scaled up, sample by sample; flipped and normalised."""
        side, views = images.shape[-1], []
        for image in images:
            cut = round(side * random.uniform(self.config.local_scale, 1) ** 0.5)
            top, left = random.randint(0, side - cut), random.randint(0, side - cut)
            crop = image[None, :, top : top + cut, left : left + cut]
            view = F.interpolate(crop, size=side, mode="bilinear", align_corners=False)
            views.append(view.flip(3) if random.random() < 0.5 else view)
        return self.normalize(torch.cat(views))

    def described(self) -> Tensor:
        """What the last forward pass says of each image."""
        return torch.cat([hook.mean for hook in self.means], dim=1).float()

    def terms(self, adversarial: bool) -> tuple[Tensor, Tensor, str]:
        recipe, images = self.recipe, self.generator(self.latents)
        view = self.augment(images)
        teacher = self.teacher(view)
        whole, ce = self.described(), F.cross_entropy(teacher, self.labels)
        bn = sum(hook.distance for hook in self.hooks)
        loss = recipe.ce_weight * ce + recipe.bn_weight * bn
        if adversarial:
            loss = loss + recipe.adv_weight * disagreement(self.student(view), teacher)
        self.teacher(self.part(images))
        local = self.described()
        stored = self.bank[torch.randperm(len(self.bank))[: self.config.num_negatives]].chunk(2, dim=1)
        local, whole = (
            F.normalize(self.head(torch.cat((new, old))), dim=1)
            for new, old in ((local, stored[0]), (whole, stored[1]))
        )
        logits = local @ whole.detach().T / self.config.contrastive_temperature
        losses = F.cross_entropy(logits.float(), torch.arange(len(logits), device=self.device), reduction="none")
        contrast = losses[: len(images)].mean() + losses[len(images) :].mean()
        line = f"ce {ce.item():.3f} bn {bn.item():.3f} cr {contrast.item():.3f}"
        return images, loss + self.config.contrastive_weight * contrast, line

    def step_optimizers(self, loss: Tensor) -> None:
        self.head_optimizer.zero_grad()
        super().step_optimizers(loss)
        self.head_optimizer.step()
