"""The pool as a folder of PNG files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class PngFolder(Dataset):
    """All images below a folder, found by walking it; decoded, cropped, flipped and normalised one by one."""

    def __init__(self, root: Path, *, pad: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.files = sorted(
            os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names if name.endswith(".png")
        )
        self.pad, self.mean, self.std = pad, torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.open(self.files[index], formats=["PNG"]).convert("RGB")
        side = image.width
        padded = ImageOps.expand(image, self.pad)
        top, left = torch.randint(0, 2 * self.pad + 1, (2,)).tolist()
        image = padded.crop((left, top, left + side, top + side))
        if torch.rand(()) < 0.5:
            image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return (pixels - self.mean) / self.std, int(self.files[index].rsplit("-", 1)[1][:-4])


class PngPool:
    """Writes images one by one; `loader` is made anew after every round."""

    def __init__(self, root: Path, *, batch_size: int, workers: int, pad: int, mean: tuple, std: tuple) -> None:
        self.root, self.batch_size, self.workers = root, batch_size, workers
        self.view = {"pad": pad, "mean": mean, "std": std}
        self.written = 0

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Save (B, 3, H, W) in [0, 1], each with its label in the file's name."""
        pixels = (images.detach().clamp(0, 1).cpu().numpy() * 255).astype("uint8").transpose(0, 2, 3, 1)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            Image.fromarray(image).save(self.root / f"{self.written}-{label}.png")
            self.written += 1

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches from a new DataLoader."""
        loader = DataLoader(
            PngFolder(self.root, **self.view),
            batch_size=self.batch_size,
            shuffle=True,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )
        while True:
            yield from loader
