"""CMI's synthesis step as its released code runs it: two views, each with all hooks, and a bank of features."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from released_style.baseline import Baseline, disagreement
from released_style.networks import LatentGenerator, draw_all_small
from released_style.recipe import Recipe


class MeansHook:
    """The spatial mean of what a BatchNorm reads, kept in every forward pass."""

    def __init__(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self.look)

    def look(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Called in every forward pass."""
        self.mean = inputs[0].mean((2, 3))


class CmiBaseline(Baseline):
    """The baseline with CMI's terms. The bank is in host memory and copied in every step, as released."""

    make_generator = LatentGenerator

    def __init__(self, recipe: Recipe, folder: Path, **options: Any) -> None:
        super().__init__(recipe, folder, **options)
        config = recipe.config
        norms = [layer for layer in self.teacher.modules() if isinstance(layer, nn.BatchNorm2d)]
        self.means = [MeansHook(layer) for layer in norms]
        width = sum(layer.num_features for layer in norms)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.head_features))
        self.head_optimizer = torch.optim.Adam(self.head.to(self.embeddings).parameters(), recipe.generator_lr)
        self.bank = torch.randn(config.bank_size, 2 * width, dtype=self.embeddings.dtype)
        self.written = 0
        """features so far; the oldest of a full bank are overwritten"""

    def begin_round(self, *, later: bool = False) -> None:
        self.student.eval()
        draw_all_small(self.generator)
        count, dim = self.recipe.synthesis_batch_size, self.recipe.latent_dim
        self.latents = torch.randn(count, dim).to(self.embeddings).requires_grad_()
        self.labels = torch.randint(self.recipe.num_classes, (count,), device=self.device)
        learned = [*self.generator.parameters(), self.latents]
        self.synthesis_optimizer = torch.optim.Adam(learned, self.recipe.generator_lr, betas=(0.5, 0.999))
        self.forget_best()

    def part(self, images: Tensor) -> Tensor:
        """A crop of at least a quarter of the area, scaled up, sample by sample; flipped and normalised."""
        side, views = images.shape[-1], []
        for image in images:
            area = random.uniform(self.recipe.config.local_scale, 1)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            height, width = (min(side, round(side * (area * each) ** 0.5)) for each in (1 / ratio, ratio))
            top, left = random.randint(0, side - height), random.randint(0, side - width)
            crop = image[None, :, top : top + height, left : left + width]
            view = F.interpolate(crop, size=side, mode="bilinear", align_corners=False)
            views.append(view.flip(3) if random.random() < 0.5 else view)
        return self.normalize(torch.cat(views))

    def described(self) -> Tensor:
        """What the last forward pass says of each image."""
        means = torch.cat([hook.mean for hook in self.means], dim=1)
        return means.to(torch.promote_types(means.dtype, torch.float32))

    def drawn(self) -> Tensor:
        """Rows of the bank, from the host."""
        filled = min(self.written, len(self.bank))
        places = random.sample(list(range(filled)), min(self.recipe.config.num_negatives, filled))
        return self.bank[places].to(self.device)

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
        contrast = self.contrast(self.described(), whole)
        line = f"ce {ce.item():.3f} bn {bn.item():.3f} cr {contrast.item():.3f}"
        return images, loss + recipe.config.contrastive_weight * contrast, line

    def contrast(self, local: Tensor, whole: Tensor) -> Tensor:
        """How well a part of an image finds its whole, among the new ones and those of the bank."""
        new, config = len(local), self.recipe.config
        self.features = torch.cat((local, whole), dim=1).detach()
        stored_local, stored_whole = self.drawn().chunk(2, dim=1)
        projected = self.head(torch.cat((local, stored_local, whole, stored_whole)))
        local, whole = F.normalize(projected, dim=1).chunk(2)
        logits = local @ whole.detach().T / config.contrastive_temperature
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(logits, torch.arange(len(logits), device=self.device), reduction="none")
        return losses[:new].mean() + losses[new:].mean() if self.written else losses.mean()

    def keep(self, images: Tensor) -> None:
        super().keep(images)
        self.best_features = self.features

    def store(self) -> None:
        super().store()
        features = self.best_features.cpu()
        places = (torch.arange(len(features)) + self.written) % len(self.bank)
        self.bank[places] = features
        self.written += len(features)

    def step_optimizers(self, loss: Tensor) -> None:
        self.head_optimizer.zero_grad()
        super().step_optimizers(loss)
        self.head_optimizer.step()
