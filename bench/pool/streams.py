"""Images per CPU-second of each stream, beside a folder of PNG files read by a DataLoader as the released codes do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from report import Figure
from scene import BATCH, MEAN, PAD, STD, filled_pool, runtime_on, smooth_images, view_of
from timing import medians
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dfkd_fast.models.torchvision_cpu import ensure_importable
from dfkd_fast.pool.pool import Pool
from dfkd_fast.sampling import EpochShuffle

GOALS = {32: {"kernel": 400_000, "ratio": 40}, 112: {"kernel": 30_000, "ratio": 8}}
IMAGES = {32: 50_000, 112: 5_000}
BATCHES = {32: {"kernel": 40, "dali": 8, "torch": 4, "png": 1}, 112: {"kernel": 8, "dali": 4, "torch": 2, "png": 1}}
"""batches in one timing"""


class PngFolder(Dataset[Tensor]):
    """PNG files with the augmentation of the released codes: torchvision's transforms on PIL images."""

    def __init__(self, folder: Path) -> None:
        ensure_importable()
        from torchvision import transforms

        self.files = sorted(folder.iterdir())
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(Image.open(self.files[0], formats=["PNG"]).size, padding=PAD),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.files[index], formats=["PNG"]).convert("RGB"))


def measure(size: int, rounds: int) -> list[Figure]:
    """All streams and the baseline at one image size, interleaved."""
    view, runtime = view_of(size), runtime_on()
    with tempfile.TemporaryDirectory() as folder:
        for index, pixels in enumerate(smooth_images(4 * BATCH, size)):
            Image.fromarray(pixels.numpy()).save(Path(folder) / f"{index}.png")
        loader = DataLoader(PngFolder(Path(folder)), BATCH, shuffle=True, drop_last=True, num_workers=0)
        pools: dict[str, Pool] = {}
        for name in ("kernel", "dali", "torch"):
            pools[name] = filled_pool(runtime, size, IMAGES[size], stream=name, prefetch=2 if name == "dali" else 0)
        variants: dict[str, Callable[[], object]] = {}
        for name, pool in pools.items():
            sampler = EpochShuffle(len(pool), BATCH, seed=0)
            variants[name] = lambda p=pool, s=sampler, n=BATCHES[size][name]: drain(p.batches(s, view, n))
        variants["png"] = lambda: next(iter(loader))
        seconds = medians(variants, rounds=rounds)
        for pool in pools.values():
            pool.close()
    rates = {name: BATCH * BATCHES[size][name] / value for name, value in seconds.items()}
    figures = [
        Figure(name=f"{name} stream, {size} px", value=rate, unit="images/CPU-s", bound=GOALS[size].get(name))
        for name, rate in rates.items()
    ]
    ratio = rates["kernel"] / rates["png"]
    return [*figures, Figure(name=f"kernel / png, {size} px", value=ratio, unit="x", bound=GOALS[size]["ratio"])]


def drain(batches: Iterator[object]) -> None:
    """Run through an iterator."""
    for _ in batches:
        pass
