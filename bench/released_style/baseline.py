"""One synthesis step, one student step and the end of a round, as the released codes run them."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.benchmark.step_profiler import calibrate_batchnorm
from dfkd_fast.models.factory import load_model
from released_style.networks import FeatureHook, Generator, StatisticsHook
from released_style.png_pool import PngPool
from released_style.recipe import Recipe

CLIP_SEPARATION = 0.03


def distillation(student: Tensor, teacher: Tensor, temperature: float, reduction: str = "batchmean") -> Tensor:
    """KL(teacher || student) at a temperature, times its square."""
    log_probabilities = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(log_probabilities, F.softmax(teacher / temperature, dim=1), reduction=reduction) * temperature**2


def disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus the divergence of student and teacher where they still agree on the class."""
    agrees = (student.argmax(1) == teacher.argmax(1)).float()
    return -(distillation(student, teacher, 1.0, "none").sum(1) * agrees).mean()


class Baseline:
    """Networks, hooks and pool of one run: NAYER's, and MUSE-S's where its weights are not 0.

    `workers`: of the DataLoader; 0 where one core has to do everything. `amp`: bf16 autocast and channels-last, which
    the released codes do not use and anybody can switch on. `networks`: teacher and student; without them random ones,
    whose steps take as long. `embeddings`: of the classes, (K, D).
    """

    make_generator: type[Generator] = Generator

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        device: str = "cpu",
        workers: int = 4,
        amp: bool = False,
        networks: tuple[nn.Module, nn.Module] | None = None,
        embeddings: Tensor | None = None,
    ) -> None:
        if embeddings is None:
            embeddings = torch.randn(recipe.num_classes, recipe.embedding_dim)
        recipe = replace(recipe, embedding_dim=embeddings.shape[1])
        self.recipe, self.device = recipe, torch.device(device)
        self.layout = torch.channels_last if amp else torch.contiguous_format
        self.autocast = partial(torch.autocast, self.device.type, torch.bfloat16, enabled=amp)
        self.teacher, self.student = networks or (self._random(spec) for spec in (recipe.teacher, recipe.student))
        for network in (self.teacher, self.student):
            network.to(self.device, memory_format=self.layout)
        self.teacher.eval()
        self.hooks = [
            StatisticsHook(layer, recipe.bn_momentum)
            for layer in self.teacher.modules()
            if isinstance(layer, nn.BatchNorm2d)
        ]
        self.teacher_features = FeatureHook(self.teacher, maps=recipe.cam_weight > 0)
        self.student_features = FeatureHook(self.student)
        self.embeddings = embeddings.to(self.device)
        self.centres = self.embeddings * scale_of(self.embeddings) if recipe.ed_weight else self.embeddings
        self.map = nn.Linear(self.student_features.weight.shape[1], recipe.embedding_dim).to(self.embeddings)
        learned = [*self.student.parameters(), *(self.map.parameters() if recipe.ed_weight else ())]
        lr, momentum, decay = recipe.student_lr, recipe.student_momentum, recipe.student_weight_decay
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(learned, lr, betas=(momentum, 0.999), weight_decay=decay)
            if recipe.adamw
            else torch.optim.SGD(learned, lr, momentum=momentum, weight_decay=decay)
        )
        view = {"pad": recipe.crop_padding, "mean": recipe.mean, "std": recipe.std}
        self.pool = self.make_pool(folder, batch_size=recipe.batch_size, workers=workers, **view)
        self.renew_generator()

    def _random(self, spec: str) -> nn.Module:
        recipe = self.recipe
        sizes = {"num_classes": recipe.num_classes, "image_size": recipe.full_size}
        model, info = load_model(spec, **sizes, mean=recipe.mean, std=recipe.std)
        calibrate_batchnorm(model, info)
        return model

    def make_pool(self, folder: Path, **options: Any) -> PngPool:
        """Where images go."""
        return PngPool(folder, **options)

    def renew_generator(self) -> None:
        """A new generator, built and moved to the device."""
        self.generator = self.make_generator(self.recipe).to(
            self.device, self.embeddings.dtype, memory_format=self.layout
        )

    def begin_round(self, *, later: bool = False) -> None:
        """New noise, new labels, a new optimiser; the networks to evaluation, but where a `later` round of an epoch
        leaves the student in training, as NAYER's release does.
        """
        if not later:
            self.student.eval()
        self.generator.noise.reset()
        count, classes = self.recipe.synthesis_batch_size, self.recipe.num_classes
        if count < classes:
            labels = torch.randperm(classes)[:count]
        else:
            labels = torch.arange(classes).repeat(count // classes)
            labels = torch.cat([labels, torch.randint(classes, (count - len(labels),))])
        self.labels = labels.to(self.device)
        self.synthesis_optimizer = torch.optim.Adam(
            self.generator.parameters(), self.recipe.generator_lr, betas=(0.5, 0.999)
        )
        self.forget_best()

    def forget_best(self) -> None:
        """No images of this round yet."""
        self.best_loss, self.best_images = float("inf"), None

    def augment(self, images: Tensor) -> Tensor:
        """Crop and flip, sample by sample, then normalise."""
        pad, side = self.recipe.crop_padding, images.shape[-1]
        padded = F.pad(images, (pad,) * 4)
        views = []
        for image in padded:
            top, left = random.randint(0, 2 * pad), random.randint(0, 2 * pad)
            view = image[:, top : top + side, left : left + side]
            views.append(view.flip(2) if random.random() < 0.5 else view)
        return self.normalize(torch.stack(views))

    def normalize(self, images: Tensor) -> Tensor:
        """To the networks' mean and spread."""
        mean, std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (self.recipe.mean, self.recipe.std)
        )
        return ((images - mean) / std).contiguous(memory_format=self.layout)

    def synthesis_step(self, *, adversarial: bool = True) -> str:
        """One generator step; returns the line that the released codes print."""
        with self.autocast():
            images, loss, line = self.terms(adversarial)
        if loss.item() < self.best_loss or self.best_images is None:
            self.best_loss = loss.item()
            self.keep(images)
        self.step_optimizers(loss)
        return f"{line} loss {loss.item():.3f}"

    def keep(self, images: Tensor) -> None:
        """These are the round's best so far."""
        self.best_images = images.data.to(torch.promote_types(images.dtype, torch.float32))

    def step_optimizers(self, loss: Tensor) -> None:
        """Backward, and the generator's step."""
        self.synthesis_optimizer.zero_grad()
        loss.backward()
        self.synthesis_optimizer.step()

    def terms(self, adversarial: bool) -> tuple[Tensor, Tensor, str]:
        """Images, loss and line of a generator step."""
        recipe = self.recipe
        images = self.generate()
        view = self.augment(images)
        teacher = self.teacher(view)
        ce = self.label_term(teacher)
        bn = sum(hook.distance for hook in self.hooks)
        loss = recipe.ce_weight * ce + recipe.bn_weight * bn
        if recipe.cam_weight:
            weights = self.teacher_features.weight[self.labels]
            cam = (self.teacher_features.maps * weights[:, :, None, None]).sum(1)
            loss = loss + recipe.cam_weight * F.relu(1 - cam).mean()
        adv = loss.new_zeros(())
        if adversarial:
            student = self.student(view)
            adv = disagreement(student, teacher)
            loss = loss + recipe.adv_weight * adv
            if recipe.aed_weight:
                loss = loss + recipe.aed_weight * F.relu(recipe.radii[1] - self._distance(self.labels))
        return images, loss, f"ce {ce.item():.3f} bn {bn.item():.3f} adv {adv.item():.3f}"

    def generate(self) -> Tensor:
        """Images of the labels."""
        return self.generator(self.embeddings[self.labels])

    def label_term(self, teacher: Tensor) -> Tensor:
        """How far the teacher's logits are from the labels."""
        return F.cross_entropy(teacher, self.labels)

    def end_round(self) -> None:
        """Statistics, PNG files, a new DataLoader."""
        for hook in self.hooks:
            hook.update()
        self.store()
        self.batches = self.pool.batches()
        self.student.train()

    def store(self) -> None:
        """The best images, to the pool."""
        self.pool.add(self.best_images, self.labels)

    def student_step(self) -> tuple[float, float, float]:
        """One student step; returns loss, top-1 and top-5 agreement, which are read in every step."""
        images, labels, *more = next(self.batches)
        images, labels = images.to(self.device, memory_format=self.layout), labels.to(self.device)
        with self.autocast():
            with torch.no_grad():
                teacher = self.teacher(images)
            student = self.student(images)
            loss = self.student_loss(student, teacher, *more)
            if self.recipe.ed_weight:
                loss = loss + self.recipe.ed_weight * F.relu(self._distance(labels) - self.recipe.radii[0])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        first = student.topk(min(5, student.shape[1]), dim=1).indices == teacher.argmax(1, keepdim=True)
        return loss.item(), first[:, :1].float().mean().item(), first.float().sum(1).mean().item()

    def student_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distillation loss of a batch."""
        return distillation(student, teacher, self.recipe.temperature)

    def _distance(self, labels: Tensor) -> Tensor:
        return F.mse_loss(self.map(self.student_features.pooled), self.centres[labels])


def scale_of(embeddings: Tensor) -> Tensor:
    """What brings embeddings to CLIP's scale, for which the radii are given: two classes at least 0.03 apart (MSE)."""
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.fill_diagonal_(torch.inf).min().square() / embeddings.shape[1]
    return (CLIP_SEPARATION / nearest).sqrt()
