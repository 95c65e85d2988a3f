"""SSD-KD in the style of Fast's released code, on which it builds; its own was never released.

A small pool of PNG files, of which the oldest are deleted; priorities in a Python list beside them, from which every
student batch is drawn by a batch sampler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from released_style.baseline import distillation
from released_style.fast import FastBaseline
from released_style.png_pool import PngFolder, PngPool


class NumberedFolder(PngFolder):
    """A folder of PNG files whose images come with their places in it."""

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return *super().__getitem__(index), index


class PriorityPool(PngPool):
    """At most `capacity` files, and a number for each that says how often it is drawn."""

    def __init__(
        self, root: Path, *, capacity: int, exponents: tuple[float, float], eps: float, **options: Any
    ) -> None:
        super().__init__(root, **options)
        self.capacity, self.exponents, self.eps = capacity, exponents, eps
        self.deltas: list[float] = []
        self.labels: list[int] = []

    def add_first(self, images: Tensor, labels: Tensor, deltas: Tensor) -> None:
        """Save images with their first priorities; the oldest leave."""
        self.add(images, labels)
        self.deltas += deltas.tolist()
        self.labels += labels.tolist()
        if len(self.deltas) > self.capacity:
            for path in self.folder().files[: len(self.deltas) - self.capacity]:
                Path(path).unlink()
        self.deltas, self.labels = self.deltas[-self.capacity :], self.labels[-self.capacity :]

    def folder(self) -> PngFolder:
        """The files, the oldest first."""
        found = NumberedFolder(self.root, **self.view)
        found.files.sort(key=lambda path: int(Path(path).name.partition("-")[0]))
        return found

    def probabilities(self) -> Tensor:
        """Of each image, in float64."""
        powers = [(abs(delta) + self.eps) ** self.exponents[0] for delta in self.deltas]
        priorities = torch.tensor(powers, dtype=torch.float64)
        return priorities / priorities.sum()

    def weights(self, places: Tensor) -> Tensor:
        """Importance weights of what was drawn: (N P)^-beta."""
        return (len(self.deltas) * self.probabilities()[places]) ** -self.exponents[1]

    def update(self, places: Tensor, deltas: Tensor) -> None:
        """New priorities of a batch; an image that was drawn twice has the greater one."""
        greatest: dict[int, float] = {}
        for place, delta in zip(places.tolist(), deltas.tolist(), strict=True):
            greatest[place] = max(delta, greatest.get(place, delta))
        for place, delta in greatest.items():
            self.deltas[place] = delta

    def draws(self) -> Iterator[list[int]]:
        """Places of one batch after another, by the priorities of that moment."""
        while True:
            yield torch.multinomial(self.probabilities(), self.batch_size, replacement=True).tolist()

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        yield from DataLoader(self.folder(), batch_sampler=self.draws(), num_workers=self.workers)


class SsdkdBaseline(FastBaseline):
    """Fast's rounds with the modulated label term, and a student that learns by priority."""

    pool: PriorityPool

    def make_pool(self, folder: Path, **options: Any) -> PngPool:
        config = self.recipe.config
        exponents = (config.priority_exponent, config.is_exponent)
        return PriorityPool(
            folder, capacity=config.buffer_size, exponents=exponents, eps=config.priority_eps, **options
        )

    def label_term(self, teacher: Tensor) -> Tensor:
        counts = Counter(self.pool.labels)
        held = max(1, len(self.pool.labels))
        confidence, predicted = F.softmax(teacher.detach(), dim=1).max(1)
        shares = torch.tensor([counts[label] / held for label in predicted.tolist()]).to(confidence)
        factor = (1 - shares) * (1 - confidence) ** self.recipe.config.focus
        return (factor * F.cross_entropy(teacher, self.labels, reduction="none")).mean()

    def store(self) -> None:
        """The images, with the teacher's classes and how far the student is from it on each."""
        view = self.normalize(self.best_images)
        with torch.no_grad(), self.autocast():
            teacher = self.teacher(view)
            deltas = distillation(self.student(view), teacher, self.recipe.temperature, "none").sum(1)
        self.pool.add_first(self.best_images, teacher.argmax(1), deltas)

    def student_step(self) -> tuple[float, float, float]:
        found = super().student_step()
        self.pool.update(*self.seen)
        return found

    def student_loss(self, student: Tensor, teacher: Tensor, places: Tensor) -> Tensor:
        weights = self.pool.weights(places).to(student)
        rows = weights * distillation(student, teacher, self.recipe.temperature, "none").sum(1)
        self.seen = places, rows.detach()
        return rows.mean()
